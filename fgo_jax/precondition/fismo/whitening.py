"""Kronecker factors of trace d that whiten a gradient from both sides."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh
from fgo_jax.precondition.shared.modes import Modes, identity
from fgo_jax.precondition.shared.over_matrices import over_matrices

# The rounding error of a float32, relative to the largest entry.
_ROUNDING = float(jnp.finfo(jnp.float32).eps)

# Arrays [*batch, d, d] for rows and columns; None for a side that keeps the identity.
Pair = tuple[jax.Array | None, jax.Array | None]


def identities(x: Any, view: Modes, max_dim: int) -> Pair:
    """The first factors of both sides, replicated on the mesh of the leaf."""
    device = mesh.of_new(x, (), ())

    def start(side: int) -> jax.Array | None:
        if not 1 < view.dims[side] <= max_dim:
            return None
        return identity(view.factor_shape(side), device)

    return start(0), start(1)


def treatment(x: Any, view: Modes | None, max_dim: int) -> tuple[str, int]:
    """In words for the user, and the bytes of the factors and roots of a leaf."""
    if view is None:
        return "no matrix, as Adam", 0
    sides = [d for d in view.dims if 1 < d <= max_dim]
    if not sides:
        return "orthogonalised, without a factor", 0
    batch = math.prod(x.shape[axis] for axis in view.batch)
    words = f"orthogonalised between factors of {' and of '.join(map(str, sides))}"
    return words, 8 * batch * sum(d * d for d in sides)


def multiply(view: Modes, x: jax.Array, factor: jax.Array | None, side: int) -> jax.Array:
    """The factor times X from the left (side 0) or from the right (side 1)."""
    return x if factor is None else view.multiply(x, factor, side)


def unit(g: jax.Array, view: Modes) -> jax.Array:
    """Each matrix divided by its root mean square, in two steps that cannot overflow."""
    for norm in (lambda x, **over: jnp.max(jnp.abs(x), **over), _rms):
        size = view.reduce(norm, g)
        g = g / jnp.where(size > 0, size, 1.0)
    return g


def _rms(x: jax.Array, **over: Any) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), **over))


def next_factor(
    factor: jax.Array | None, view: Modes, x: jax.Array, side: int, decay: Any, damping: Any
) -> jax.Array | None:
    """The factor of a side, moved towards the Gram matrix of x on it and brought to trace d."""
    if factor is None:
        return None
    d, others = view.dims[side], view.dims[1 - side]
    eye = jnp.broadcast_to(jnp.eye(d, dtype=jnp.float32), factor.shape)
    gram = view.gram(x, side) / others
    # At most the factor's own trace: or else the last gradient alone would make the factor, and
    # leave the damping behind.
    gram = gram / jnp.maximum(_trace(gram) / d, 1.0) + damping * _trace(factor) / d * eye
    new = decay * factor + (1 - decay) * gram
    new = (new + jnp.swapaxes(new, -1, -2)) / 2
    trace = _trace(new)
    # The squares of whitened gradients can overflow.
    good = jnp.isfinite(trace) & (trace > 0)
    return jnp.where(good, new * (d / jnp.where(good, trace, 1.0)), factor)


def advance(
    grads: Sequence[jax.Array],
    found: Sequence[Modes],
    factors: Sequence[Pair],
    roots: Sequence[Pair],
    *,
    decay: Any,
    damping: Any,
    due: jax.Array,
    power: float = 0.5,
    coupled: bool = True,
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The next factors of all matrices, and their inverse roots: new ones if `due`.

    One conditional holds both, because the rows' new roots whiten what the columns' factors see
    where sides are coupled.
    """

    def step(fresh: bool, grads: Any, factors: Any, roots: Any) -> tuple[Any, Any]:
        new: list[list[Any]] = [[], []]
        inverse = [[pair[side] for pair in roots] for side in (0, 1)]
        for side in (0, 1):
            other = inverse[1 - side]
            for g, view, pair, root in zip(grads, found, factors, other, strict=True):
                x = multiply(view, g, root, 1 - side) if coupled else g
                new[side].append(next_factor(pair[side], view, x, side, decay, damping))
            if fresh:
                inverse[side] = inverse_roots(new[side], power)
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


def inverse_roots(
    factors: Sequence[jax.Array | None], power: float = 0.5
) -> list[jax.Array | None]:
    """Inverse roots of positive semi-definite matrices [*batch, d, d]; None stays None."""
    given = {i: factor for i, factor in enumerate(factors) if factor is not None}
    root = functools.partial(_inverse_root, power=power)
    found = over_matrices(root, list(given.values()))
    roots = dict(zip(given, found, strict=True))
    return [roots.get(i) for i in range(len(factors))]


def _inverse_root(factor: jax.Array, power: float) -> jax.Array:
    values, vectors = jnp.linalg.eigh(factor)
    # Smaller eigenvalues are rounding errors.
    least = factor.shape[0] * _ROUNDING * values[-1]
    values = jnp.maximum(values, least)
    values = 1 / jnp.sqrt(values) if power == 0.5 else values**-power
    return jnp.matmul(vectors * values[None, :], vectors.T, precision="highest")
