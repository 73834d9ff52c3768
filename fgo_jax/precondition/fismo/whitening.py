"""Kronecker factors of trace d that whiten a gradient from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.precondition.shared import mesh
from fgo_jax.precondition.shared.modes import Modes

# What one rounding of a float32 loses, relative to the largest entry.
_ROUNDING = float(jnp.finfo(jnp.float32).eps)

# Of the rows and of the columns, [*batch, d, d]; None for a side that keeps the identity.
Pair = tuple[jax.Array | None, jax.Array | None]


def identities(x: Any, view: Modes, max_dim: int) -> Pair:
    """The start of both sides, replicated on the mesh that the leaf lies on."""
    device = mesh.device_of_new(x)

    def identity(side: int) -> jax.Array | None:
        if not 1 < view.dims[side] <= max_dim:
            return None
        eye = jnp.broadcast_to(jnp.eye(view.dims[side]), view.factor_shape(side))
        return jnp.array(eye, jnp.float32, device=device)

    return identity(0), identity(1)


def multiply(view: Modes, x: jax.Array, factor: jax.Array | None, side: int) -> jax.Array:
    return x if factor is None else view.multiply(x, factor, side)


def unit(g: jax.Array, view: Modes) -> jax.Array:
    """Each matrix divided by its root mean square, in two steps that cannot overflow."""
    for norm in (lambda x, **over: jnp.max(jnp.abs(x), **over), _rms):
        size = view.reduce(norm, g)
        g = g / jnp.where(size > 0, size, 1.0)
    return g


def _rms(x: jax.Array, **over: Any) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), **over))


def advance(
    grads: Sequence[jax.Array],
    found: Sequence[Modes],
    factors: Sequence[Pair],
    roots: Sequence[Pair],
    *,
    decay: Any,
    damping: Any,
    due: jax.Array,
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The next factors of all matrices, and their inverse roots: new ones if `due`.

    One conditional holds it, since the columns' factors are fed with what the rows' new
    roots have whitened.
    """

    def next_factor(factor, view, x, side):
        if factor is None:
            return None
        d, others = view.dims[side], view.dims[1 - side]
        eye = jnp.broadcast_to(jnp.eye(d, dtype=jnp.float32), factor.shape)
        gram = view.gram(x, side, "highest") / others + damping * _trace(factor) / d * eye
        new = decay * factor + (1 - decay) * gram
        new = (new + jnp.swapaxes(new, -1, -2)) / 2
        trace = _trace(new)
        # Of finite gradients too the squares can overflow.
        good = jnp.isfinite(trace) & (trace > 0)
        return jnp.where(good, new * (d / jnp.where(good, trace, 1.0)), factor)

    def step(fresh, grads, factors, roots):
        new: list[list[Any]] = [[], []]
        inverse = [[pair[side] for pair in roots] for side in (0, 1)]
        for side in (0, 1):
            other = inverse[1 - side]
            for g, view, pair, root in zip(grads, found, factors, other, strict=True):
                x = multiply(view, g, root, 1 - side)
                new[side].append(next_factor(pair[side], view, x, side))
            if fresh:
                inverse[side] = inverse_roots(new[side])
        return tuple(zip(*new, strict=True)), tuple(zip(*inverse, strict=True))

    return jax.lax.cond(
        due,
        lambda *operands: step(True, *operands),
        lambda *operands: step(False, *operands),
        tuple(grads),
        tuple(factors),
        tuple(roots),
    )


def _trace(factor: jax.Array) -> jax.Array:
    return jnp.trace(factor, axis1=-2, axis2=-1)[..., None, None]


def inverse_roots(factors: Sequence[jax.Array | None]) -> list[jax.Array | None]:
    """Inverse square roots of positive semi-definite matrices [*batch, d, d].

    Factors of equal size share one compiled loop. They are not batched: on CPU batched
    decompositions can wait for each other for ever (jaxlib 0.10).
    """
    by_size: dict[int, dict[int, jax.Array]] = {}
    for i, factor in enumerate(factors):
        if factor is not None:
            by_size.setdefault(factor.shape[-1], {})[i] = factor
    roots: list[jax.Array | None] = [None] * len(factors)
    for d, same in by_size.items():
        stacked = [factor.reshape(-1, d, d) for factor in same.values()]
        result = jax.lax.map(_inverse_root, jnp.concatenate(stacked))
        start = 0
        for (i, factor), part in zip(same.items(), stacked, strict=True):
            roots[i] = result[start : start + len(part)].reshape(factor.shape)
            start += len(part)
    return roots


def _inverse_root(factor: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(factor)
    # Below this an eigenvalue is rounding.
    least = factor.shape[0] * _ROUNDING * values[-1]
    values = 1 / jnp.sqrt(jnp.maximum(values, least))
    return jnp.matmul(vectors * values[None, :], vectors.T, precision="highest")
