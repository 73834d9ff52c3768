"""Kronecker factors of trace d that whiten a gradient from both sides."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.precondition.fismo.matrices import Matrices, Pair
from fgo_jax.precondition.shared.over_matrices import over_matrices

# The rounding error of a float32, relative to the largest entry.
_ROUNDING = float(jnp.finfo(jnp.float32).eps)


def unit(g: jax.Array, kind: Matrices | int) -> jax.Array:
    """Each matrix divided by its root mean square, in two steps that cannot overflow."""
    if isinstance(kind, int):
        return g
    for norm in (lambda x, **over: jnp.max(jnp.abs(x), **over), _rms):
        size = kind.whole.reduce(norm, g)
        g = g / jnp.where(size > 0, size, 1.0)
    return g


def _rms(x: jax.Array, **over: Any) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), **over))


def next_factor(
    factor: jax.Array | None, one: Matrices, x: jax.Array, side: int, decay: Any, damping: Any
) -> jax.Array | None:
    """The factor of a side, moved towards the Gram matrix of x on it and brought to trace d.

    Its blocks are the diagonal ones of a d x d matrix, so they share the trace.
    """
    view = one.sides[side]
    if factor is None or view is None:
        return None
    d, others = one.whole.dims[side], one.whole.dims[1 - side]
    blocks = tuple(range(len(view.batch) - len(one.whole.batch)))

    def trace(factor: jax.Array) -> jax.Array:
        each = jnp.trace(factor, axis1=-2, axis2=-1)[..., None, None]
        return jnp.sum(each, axis=blocks, keepdims=True) if blocks else each

    eye = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=jnp.float32), factor.shape)
    gram = view.gram(x, 0) / others
    # At most trace d: otherwise one large gradient would dominate the factor and outweigh the
    # damping.
    gram = gram / jnp.maximum(trace(gram) / d, 1.0) + damping * trace(factor) / d * eye
    new = decay * factor + (1 - decay) * gram
    new = (new + jnp.swapaxes(new, -1, -2)) / 2
    total = trace(new)
    # The squares of whitened gradients can overflow.
    good = jnp.isfinite(total) & (total > 0)
    return jnp.where(good, new * (d / jnp.where(good, total, 1.0)), factor)


def whitened(
    kinds: Sequence[Matrices | int],
    rows: Sequence[jax.Array],
    usable: Sequence[jax.Array],
    before: tuple[Sequence[Any], Sequence[Any]],
    *,
    decay: Any,
    damping: Any,
    due: jax.Array,
    power: float = 0.5,
    coupled: bool = True,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The next factors and roots of all kinds of leaves; () for those that are no matrices.

    Args:
      rows: the gradient of each kind.
      usable: whether each of its matrices has a gradient; the others keep their factors and roots.
      before: factors and roots, an entry for each kind.
      due: [], bool; whether the roots are refreshed.
      power: of the inverse roots.
      coupled: whether a side's factor sees gradients that the other side has whitened.
    """
    factors, roots = map(list, before)
    found = {i: kind for i, kind in enumerate(kinds) if not isinstance(kind, int)}
    if not found:
        return tuple(factors), tuple(roots)
    old = [
        (kind.at_home(factors[i], rows[i]), kind.at_home(roots[i], rows[i]))
        for i, kind in found.items()
    ]
    matrices, grads = list(found.values()), [rows[i] for i in found]
    how = {"decay": decay, "damping": damping, "due": due, "power": power, "coupled": coupled}
    new = _advance(grads, matrices, *zip(*old, strict=True), **how)
    for (i, kind), pair, *moved in zip(found.items(), old, *new, strict=True):
        # The roots as well: those of a skipped gradient come from a factor that only damping moved.
        factors[i], roots[i] = (
            kind.at_home(kind.where(usable[i], *change), rows[i])
            for change in zip(moved, pair, strict=True)
        )
    return tuple(factors), tuple(roots)


def _advance(
    grads: Sequence[jax.Array],
    found: Sequence[Matrices],
    factors: Sequence[Pair],
    roots: Sequence[Pair],
    *,
    decay: Any,
    damping: Any,
    due: jax.Array,
    power: float,
    coupled: bool,
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
            for g, one, pair, root in zip(grads, found, factors, other, strict=True):
                x = one.multiply(g, root, 1 - side) if coupled else g
                new[side].append(next_factor(pair[side], one, x, side, decay, damping))
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
