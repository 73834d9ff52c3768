"""What every probe of a curvature operator shares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks

# `(params, batch) -> matvec`, as fgo_jax.curvature makes them.
Operator = Callable[[Any, Any], Callable[[Any], Any]]


def vdot(a: Any, b: Any) -> jax.Array:
    """Inner product of two float32 pytrees, leaf by leaf.

    Not `optax.tree.vdot`: as of 0.2.8 it takes JAX 0.10 for a version before 0.7.2 (it
    compares strings) and flattens the leaves, which gathers the sharded ones.
    """

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tensordot(x, y, axes=x.ndim, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.reduce(jnp.add, jax.tree.map(product, a, b), jnp.zeros([], jnp.float32))


def is_due(step: jax.Array, every: Any) -> jax.Array:
    return (step > 0) & (step % jnp.asarray(every, step.dtype) == 0)


def check_examples(
    examples: int | None, batch_size: int | None, minimum: int, multiple: int = 1
) -> None:
    """Raises where the declared sizes cannot be met by any batch."""
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size, minimum)
    if examples is None:
        return
    _checks.positive_int("examples", examples, minimum)
    if examples % multiple:
        raise ValueError(
            f"examples must be a multiple of {multiple} to be cut into equal halves, got "
            f"{examples}: pass {examples + multiple - examples % multiple}."
        )
    if batch_size is not None and examples > batch_size:
        raise ValueError(
            f"examples={examples} cannot be read from batch_size={batch_size}: pass at most "
            f"{batch_size}, or examples=None for an eighth of the batch."
        )


def example_count(
    batch: Any, *, examples: int | None, batch_size: int | None, minimum: int, multiple: int = 1
) -> int:
    """How many leading examples of a batch to read; a static number."""
    shapes = {
        jax.tree_util.keystr(path) or "batch": jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    if not shapes:
        raise ValueError("batch has no arrays: pass batch= with examples along axis 0.")
    sizes = {shape[0] for shape in shapes.values() if shape}
    if len(sizes) != 1 or () in shapes.values():
        listed = ", ".join(
            f"{name} has {shape[0] if shape else 'no axis'}" for name, shape in shapes.items()
        )
        raise ValueError(
            f"every leaf of batch needs the same examples along axis 0, but {listed}: pass only "
            "such arrays as batch=, and close over the rest in predict_fn."
        )
    (size,) = sizes
    if batch_size is not None and size != batch_size:
        raise ValueError(
            f"probe was built for batch_size={batch_size} but got {size} examples; pass "
            f"batch_size={size}, or leave batch_size=None."
        )
    needed = minimum if examples is None else examples
    if size < needed:
        raise ValueError(
            f"the probe reads {needed} examples but batch has {size}: pass a larger batch"
            + ("." if examples is None else f", or examples= of at most {size}.")
        )
    return max(minimum, size // 8 // multiple * multiple) if examples is None else examples


def student_width(freedom: int) -> float:
    """How much wider than a normal's Student's 95 % interval is, at f degrees of freedom.

    An error estimated from few draws is itself uncertain; times this, 1.96 of it cover
    the truth as often as they should. The distribution function is a finite sum in
    t = sqrt(f) tan(angle) (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """

    def inside(angle: float) -> float:
        cosine, term, total = math.cos(angle), 1.0, 0.0
        odd = freedom % 2
        if odd:
            term = cosine
        for j in range(freedom // 2):
            total += term
            term *= cosine**2 * ((2 * j + 2) / (2 * j + 3) if odd else (2 * j + 1) / (2 * j + 2))
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return freedom**0.5 * math.tan(low) / 1.959964
