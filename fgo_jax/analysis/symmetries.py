"""Directions of the parameters along which a loss is constant, found from gradients."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax import _checks
from fgo_jax.linalg import half
from fgo_jax.linalg.draws import drawn_like
from fgo_jax.linalg.rows import unit_of
from fgo_jax.linalg.trees import leaf_names, sum_squares, vdot

# A symmetry holds if its statistic is below this at each of four points. Without the symmetry it is
# about standard normal: one part in 400,000 passes by chance.
_CHANCE = 0.05
_POINTS = 4
_SPREAD = 0.5  # of the points, in root mean squares of a leaf
_ROUNDING = 100 * float(np.finfo(np.float32).eps)
# Two gradients of nothing but rounding differ by about twice their squared length.
_CHANGE = 0.1

Part = tuple[str, ...]  # paths of leaves that change together


class Symmetries(NamedTuple):
    r"""What :func:`symmetries` found; every leaf by its path, its keys joined by "/".

    Attributes:
      scale: parts whose common factor does not matter: :math:`\langle\theta, g\rangle = 0`.
      translation: leaves to whose last axis a constant can be added: the gradient sums to zero
        along it.
      rescale: classes of parts; one can grow by a factor if another shrinks by it:
        :math:`\langle\theta, g\rangle` is the same for all of a class.
      still: leaves without a gradient beyond rounding: its norm is below :math:`10^{-5}`
        of the largest leaf's, and it changes when the parameters change by their rounding.
      residuals: for each leaf the largest :math:`|\langle\theta, g\rangle| / (\|\theta\|
        \|g\|)` at the points that were tried.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> found = fgo.analysis.symmetries(lambda p, x: jnp.sum(x * p["w"] / p["v"]), {
      ...     "w": jnp.ones(3), "v": jnp.ones(())}, jnp.arange(3.0))
      >>> found.rescale, found.scale
      ((), (('v', 'w'),))

    Source: arXiv 2105.02716, section 3.
    """

    scale: tuple[Part, ...]
    translation: tuple[str, ...]
    rescale: tuple[tuple[Part, ...], ...]
    still: tuple[str, ...]
    residuals: dict[str, float]


def symmetries(
    loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any, *, key: jax.Array | None = None
) -> Symmetries:
    r"""Finds parameters that a normalisation, a softmax or a homogeneous layer makes redundant.

    A loss that does not change along a direction has no gradient along it:

    | symmetry | where | identity |
    |---|---|---|
    | scale | weights before a normalisation | :math:`\langle\theta, g\rangle = 0` |
    | translation | what is added to logits, or before a layer norm | :math:`\sum_j g_{ij} = 0` |
    | rescale | around a ReLU or none; queries and keys | :math:`\langle\theta, g\rangle` is equal |

    The identities are tried at four points around the parameters, with biases far from zero: a
    bias of zero would pass as scale-invariant itself, and so would the kernel beside it. Each
    leaf is tried, and all leaves of a module together, since a kernel and its bias before a
    normalisation scale together.

    The tolerance follows from chance. A leaf of n entries that is independent of its
    gradient gives :math:`\langle\theta, g\rangle` of about :math:`\|\theta\| \|g\| / \sqrt n`.
    A twentieth of that at four points in a row happens to one leaf in 400,000. Below
    :math:`10^9` entries it exceeds float32 rounding. It exceeds the effect of a
    normalisation's epsilon if that is below :math:`0.05/\sqrt n` of the variance.

    Symmetries of parts of a leaf are not looked for: under a batch norm each unit's weights
    have a scale of their own, and around a ReLU each unit does.

    Args:
      loss_fn: ``(params, batch) -> loss``, a scalar or one number for each example.
      params: pytree of floating arrays.
      batch: what the loss reads. It must be deterministic.
      key: PRNG key of the points; None for ``jax.random.key(0)``.

    Returns:
      A :class:`fgo_jax.analysis.Symmetries`. :func:`fgo_jax.analysis.symmetry_telemetry` reads
      it.

    Raises:
      ValueError: for gradients that are not finite.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> def loss(params, x):
      ...     hidden = jax.nn.standardize(x @ params["w"], epsilon=1e-9)
      ...     logits = hidden @ params["v"] + params["b"]
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(8) % 3)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> shapes = {"w": (4, 6), "v": (6, 3), "b": (3,)}
      >>> params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items())}
      >>> found = fgo.analysis.symmetries(loss, params, jax.random.normal(keys[0], (8, 4)))
      >>> found.scale, found.translation
      ((('w',),), ('b', 'v', 'w'))

    Source: arXiv 2105.02716, section 3; arXiv 2012.04728, for the identities. The points, the
    tolerance and the classes are this library's.
    """
    _checks.function("loss_fn", loss_fn, "(params, batch) -> loss")
    key = jax.random.key(0) if key is None else key
    paths = leaf_names(params)
    sizes = np.array([leaf.size for leaf in jax.tree.leaves(params)], np.float64)
    measured = _measured(loss_fn, params, batch, jax.random.split(key, _POINTS))
    # [points, leaves]
    dots, squares, powers, sums, changes, units = (np.asarray(x, np.float64) for x in measured)
    dots, powers, sums = units * dots, units**2 * powers, units**2 * sums
    changes = units**2 * changes
    if not all(np.isfinite(x).all() for x in (dots, squares, powers, sums)):
        raise ValueError(
            "the gradients of loss_fn are not finite near the parameters: check that the "
            "parameters and the batch hold no NaN or infinity."
        )
    chance = squares * powers / sizes  # variance of <theta, g> if the two were independent
    small = (powers <= _ROUNDING**2 * powers.max(1, keepdims=True)).all(0)
    # A small gradient is a gradient, if rounding does not change it.
    still = small & (changes.sum(0) >= _CHANGE * powers.sum(0))

    def normal(number: np.ndarray, variance: np.ndarray) -> float:
        """The largest size over the points, in standard deviations."""
        return float(np.max(np.abs(number) / np.sqrt(np.where(variance > 0, variance, np.inf))))

    parts = [part for part in _parts(paths) if not still[list(part)].any()]
    total = {part: dots[:, list(part)].sum(1) for part in parts}
    spread = {part: chance[:, list(part)].sum(1) for part in parts}
    scale: dict[tuple[int, ...], float] = {}
    for part in parts:  # the smallest come first
        inside = [one for one in scale if set(one) <= set(part)]
        size = normal(total[part], spread[part])
        # A kernel alone may pass if its bias is small; both together then pass better.
        if size <= min([_CHANCE, *(0.1 * scale[one] for one in inside)]):
            scale = {one: scale[one] for one in scale if one not in inside} | {part: size}

    alike = []
    for one, other in itertools.combinations(parts, 2):
        # Parts that share a leaf, or are scale-invariant, are equal trivially.
        trivial = set(one) & set(other) or any(
            set(s) <= set(part) for s in scale for part in (one, other)
        )
        if not trivial:
            gap, variance = total[one] - total[other], spread[one] + spread[other]
            if normal(gap, variance) <= _CHANCE:
                alike.append({one, other})

    def named(part: Sequence[int]) -> Part:
        return tuple(paths[i] for i in part)

    translated = [
        paths[i]
        for i in range(len(paths))
        if not still[i] and normal(np.sqrt(sums[:, i]), powers[:, i]) <= _CHANCE
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.nan_to_num(np.abs(dots) / np.sqrt(squares * powers)).max(0)
    return Symmetries(
        scale=tuple(map(named, scale)),
        translation=tuple(translated),
        rescale=tuple(tuple(sorted(map(named, one))) for one in _joined(alike)),
        still=tuple(path for path, flag in zip(paths, still, strict=True) if flag),
        residuals=dict(zip(paths, cosines.tolist(), strict=True)),
    )


def _normal(key: jax.Array, leaf: jax.Array) -> jax.Array:
    return jax.random.normal(key, leaf.shape, leaf.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _measured(loss_fn: Any, params: Any, batch: Any, keys: jax.Array) -> tuple[jax.Array, ...]:
    """<theta, g>, |theta|^2, |g|^2, |sum of g along its last axis|^2 and the change of g.

    Each is [points, leaves], with gradients in the units returned last. The change is squared,
    after moving parameters by their rounding error.
    """

    def at(key: jax.Array) -> tuple[jax.Array, ...]:
        leaves, treedef = jax.tree.flatten(params)
        moved, rounded = [], []
        for leaf, drawn in zip(leaves, drawn_like(_normal, key, leaves), strict=True):
            size = jnp.sqrt(jnp.mean(jnp.square(leaf)))
            # Vectors move by at least half of a unit activation, so that a bias matters.
            size = jnp.maximum(size, 1.0) if leaf.ndim < 2 else jnp.where(size > 0, size, 0.1)
            moved.append(leaf + _SPREAD * size * drawn)
            digit = 4 * float(jnp.finfo(leaf.dtype).eps)
            rounded.append(moved[-1] * (1 + digit * jnp.sign(drawn)))

        def gradient(leaves: list[Any]) -> list[Any]:
            def scaled(scale: float) -> list[Any]:
                def mean(leaves: list[Any]) -> jax.Array:
                    return scale * jnp.mean(loss_fn(treedef.unflatten(leaves), batch))

                return [g.astype(jnp.float32) / scale for g in jax.grad(mean)(leaves)]

            return half.scaled_up(leaves, scaled)

        grads = gradient(moved)
        units = [unit_of(g) for g in grads]
        grads, other = (
            [g / unit for g, unit in zip(some, units, strict=True)]
            for some in (grads, gradient(rounded))
        )
        moved = [p.astype(jnp.float32) for p in moved]
        along = [jnp.sum(g, axis=-1) if g.ndim else g for g in grads]
        changed = [a - b for a, b in zip(other, grads, strict=True)]
        return (
            jnp.stack([vdot(p, g) for p, g in zip(moved, grads, strict=True)]),
            *(jnp.stack([sum_squares(x) for x in xs]) for xs in (moved, grads, along, changed)),
            jnp.stack(units),
        )

    return jax.lax.map(at, keys)


def _parts(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """Each leaf, then all leaves of each module that has several, by their indices."""
    modules: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        modules.setdefault(path.rpartition("/")[0], []).append(index)
    several = [tuple(members) for members in modules.values() if len(members) > 1]
    return [(index,) for index in range(len(paths))] + several


def _joined(pairs: Sequence[set[Any]]) -> list[set[Any]]:
    """Classes of what is joined by pairs."""
    classes: list[set[Any]] = []
    for pair in pairs:
        touched = [one for one in classes if one & pair]
        classes = [one for one in classes if not one & pair] + [set(pair).union(*touched)]
    return classes
