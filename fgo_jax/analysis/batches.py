"""The data of an analysis: one batch, or several of equal shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.operator import Operator, bind_matvec, bind_mean
from fgo_jax.probes.gram import RowsFn, gram
from fgo_jax.probes.groups import Groups
from fgo_jax.probes.probe import Estimate, ProbeInputs

# Batches stacked along a new leading axis.
Data = Any


def stack_batches(batch: Any, batches: Iterable[Any] | None) -> Data:
    """Stacks the batches along a new leading axis; raises if their shapes differ."""
    if (batch is None) == (batches is None):
        raise ValueError(
            "pass one batch as batch= or several of equal shapes as batches=, but not both: a "
            "batch may itself be a list, so the two cannot be told apart."
        )
    if batches is not None:
        batches = list(batches)  # a generator gives its batches once
    if not jax.tree.leaves(batch if batches is None else batches):
        raise ValueError("the batch holds no arrays: pass what the operator reads.")
    if batches is None:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], batch)
    kinds = {(jax.tree.structure(one), *map(jnp.shape, jax.tree.leaves(one))) for one in batches}
    if len(kinds) != 1:
        raise ValueError(
            f"batches must be one or more batches of equal structure and shapes, got "
            f"{len(batches)} of {len(kinds)} kinds: leave out a smaller last batch."
        )
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *batches)


def refuse_batches(operator: Operator, params: Any, data: Data, key: jax.Array) -> NoReturn:
    """Raises for non-finite products."""
    for index in range(jax.tree.leaves(data)[0].shape[0]):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], data)

        # Run for its errors: inside a `jit` the batch has no values to check.
        def run(p: Any, one: Any = one) -> None:
            bind_matvec(operator, p, one, key)

        jax.eval_shape(run, params)
    raise ValueError(
        "the operator's products are not finite: check that the parameters and the batch hold no "
        "NaN or infinity, and that labels are within the classes."
    )


def mean_product(
    operator: Operator, params: Any, data: Data, key: jax.Array
) -> Callable[[Any], Any]:
    """The matvec of the mean operator of the batches, in float32.

    A random operator draws once per batch, so all products use the same draws.
    """
    count = jax.tree.leaves(data)[0].shape[0]
    if count == 1:
        return bind_mean(operator, params, jax.tree.map(lambda leaf: leaf[0], data), key)

    def mean(vector: Any) -> Any:
        def add(total: Any, step: tuple[Any, jax.Array]) -> tuple[Any, None]:
            one, index = step
            matvec = bind_mean(operator, params, one, key, index)
            return optax.tree.add(total, matvec(vector)), None

        steps = (data, jnp.arange(count, dtype=jnp.int32))
        total = jax.lax.scan(add, optax.tree.zeros_like(vector), steps)[0]
        return jax.tree.map(lambda leaf: leaf / count, total)

    return mean


def check_rows(data: Data) -> None:
    """Raises for batches of too few examples for :func:`gradient_noise`."""
    if _examples(data) < 5:
        raise ValueError(
            f"the noise scale of rows_fn= needs batches of at least 5 examples, got "
            f"{_examples(data)}: pass larger ones, or leave out rows_fn=."
        )


def _examples(data: Data) -> int:
    """The size of the batches' shortest axis 0."""
    return min([x.shape[1] for x in jax.tree.leaves(data) if x.ndim > 1], default=0)


def gradient_noise(
    rows_fn: RowsFn,
    params: Any,
    data: Data,
    groups: Groups | None,
    examples: int,
    key: jax.Array,
) -> dict[str, Estimate]:
    """Noise scales of the gradients; numerator and denominator are averaged over batches."""
    count, size = jax.tree.leaves(data)[0].shape[0], _examples(data)

    @functools.partial(jax.jit, static_argnums=0)
    def measure(read: int, index: jax.Array, params: Any, data: Data, state: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[index], data)
        # A weight of i / (i + 1) on the average so far gives the plain mean.
        so_far: Any = index / (index + 1.0)
        probe = gram(rows_fn, examples=read, smoothing=so_far, groups=groups)
        drawn = jax.random.fold_in(key, index)
        inputs = ProbeInputs(None, None, params, batch, drawn, jnp.int32(0))
        return probe.measure(inputs, state)

    probe = gram(rows_fn, groups=groups)
    state = probe.init(params)
    for index in range(count):
        state = measure(min(examples, size), jnp.int32(index), params, data, state)
    if int(state.evaluations) < count:
        raise ValueError(
            "the rows of rows_fn are not finite: check that the batch holds no NaN or infinity, "
            "and that labels are within the classes."
        )
    return {name: value for name, value in probe.read(state).items() if "noise_scale" in name}
