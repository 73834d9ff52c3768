"""Mean operators over a batch in chunks: memory for one chunk, repeated forward passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.curvature import weights as weighting
from fgo_jax.linalg.devices import as_varying, varying_axes

Matvec = Callable[[Any], Any]


class Part(NamedTuple):
    """One of `of` interleaved parts of a batch: the examples index, index + of, ..."""

    index: Any = 0
    of: int = 1
    examples: int = 1  # examples in the part; only read where `of` is more than one

    def rows(self, count: int) -> jax.Array:
        """Indices in the whole batch of a part's `count` output rows."""
        per_example = max(count // self.examples, 1)
        local = jnp.arange(count, dtype=jnp.int32)
        if self.of == 1:
            return local
        example, row = local // per_example, local % per_example
        return (example * self.of + self.index) * per_example + row


def check_options(weights: Any, chunk_size: Any) -> None:
    """Raises for options that no batch can satisfy."""
    if weights is not None:
        weighting.check_select("weights", weights)
    if chunk_size is not None:
        _checks.positive_int("chunk_size", chunk_size)


def mean_over_chunks(
    build: Callable[[Any, Any, Part], Matvec],
    params: Any,
    batch: Any,
    weights: weighting.Select | None,
    chunk_size: int | None,
) -> Matvec:
    """The matvec of the whole batch, where `build` makes the mean matvec of any part.

    Every product scans the chunks and linearises each again, so nothing of a chunk is kept.
    Under `jax.shard_map` the batch is the device's own, and so are the products.
    """
    axes = varying_axes(batch)
    params = as_varying(params, axes)
    count = 1 if chunk_size is None else _examples(batch, chunk_size) // chunk_size
    if chunk_size is None or count == 1:
        whole = build(params, batch, Part())
        return lambda vector: whole(as_varying(vector, axes))

    def chunk(index: Any) -> Any:
        # Every count-th example, not a block: in a batch sharded over examples every device
        # then holds its share of each chunk.
        def take(leaf: jax.Array) -> jax.Array:
            rows = jnp.reshape(leaf, (chunk_size, count, *leaf.shape[1:]))
            return jax.lax.dynamic_index_in_dim(rows, index, axis=1, keepdims=False)

        return jax.tree.map(take, jax.tree.map(jnp.asarray, batch))

    # Only for its errors: labels can be checked here, where they are still concrete.
    def run_checks(p: Any) -> None:
        build(p, batch, Part())

    jax.eval_shape(run_checks, params)
    indices = jnp.arange(count, dtype=jnp.int32)
    shares = jnp.full([count], 1.0 / count, jnp.float32)
    if weights is not None:

        def total(index: jax.Array) -> jax.Array:
            return jnp.sum(weighting.pick("weights", weights, chunk(index)), dtype=jnp.float32)

        totals = jax.lax.map(total, indices)
        shares = totals / weighting.safe_total(jnp.sum(totals))

    def matvec(vector: Any) -> Any:
        vector = as_varying(vector, axes)

        def add(carry: Any, step: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            index, share = step
            part = Part(index, count, chunk_size)
            product = build(params, chunk(index), part)(vector)
            return jax.tree.map(lambda c, p: c + share * p, carry, product), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.float32), params)
        return jax.lax.scan(add, as_varying(zeros, axes), (indices, shares))[0]

    return matvec


def _examples(batch: Any, chunk_size: int) -> int:
    """The size of axis 0 of every leaf; raises where chunks do not divide it."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        shapes = jax.tree.map(jnp.shape, batch)
        raise ValueError(
            f"chunk_size needs a batch whose arrays all have the examples along axis 0, got "
            f"{shapes}: close over the other arrays in the function, or pass chunk_size=None."
        )
    ((size,),) = sizes
    if size % chunk_size:
        divisor = next(d for d in range(min(chunk_size, size), 0, -1) if size % d == 0)
        raise ValueError(
            f"chunk_size={chunk_size} does not divide the {size} examples of the batch: pass a "
            f"divisor of {size} such as {divisor} (a probe's batch is the part that it reads)."
        )
    return size
