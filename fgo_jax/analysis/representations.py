"""How far a representation moved between two states of a run, by the order of its distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fgo_jax import _checks


def representation_drift(before: Any, after: Any) -> float:
    r"""How much the geometry of a fixed batch's representations changed.

    .. math:: 1 - \mathrm{Spearman}\bigl( \lbrace \|x_i - x_j\| \rbrace,
              \lbrace \|y_i - y_j\| \rbrace \bigr)_{i < j}

    with the representations x and y of the same examples in two states of a run. 0 says that
    all distances keep their order; 1, that the two have nothing to do with each other. Shifts,
    rotations and one common factor change nothing, and neither does the number of features.
    So it cannot show that the head reads the features differently. Distances that differ by no
    more than rounding count as equal.

    All pairs share their examples, so the usual error of a rank correlation does not apply.
    Read the number beside the drift over a few steps at the same rate, or between two batches.

    Args:
      before: [examples, ...]; further axes are features.
      after: [examples, ...], of the same examples in the same order.

    Returns:
      The drift, in [0, 2]; NaN where all distances of one state are equal.

    Raises:
      ValueError: for different or fewer than three examples, and for numbers that are not
        finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> x, other = (jax.random.normal(key, (50, 8)) for key in keys)
      >>> turned = x @ jnp.linalg.qr(other[:8])[0]
      >>> bool(fgo.analysis.representation_drift(x, 3.0 * turned + 1.0) < 1e-4)
      True
      >>> bool(fgo.analysis.representation_drift(x, other) > 0.8)
      True

    Source: ``rdm_drift`` of arXiv 2601.09173, from the definition. No trigger reads it.
    """
    x, y = _rows("before", before), _rows("after", after)
    if len(x) != len(y):
        raise ValueError(
            f"before has {len(x)} examples and after {len(y)}: represent the same batch, in the "
            "same order, in both states."
        )
    reaches = _rounding(before, x), _rounding(after, y)
    return 1.0 - _spearman(_distances(x), _distances(y), reaches)


def feature_split(
    representation: Any, splits: int | Sequence[tuple[Any, Any]] = 30, *, seed: int = 0
) -> float:
    r"""Rank correlation of the distances in two halves of the features; depends on the basis.

    .. math:: \mathrm{mean}\; \mathrm{Spearman}\bigl( \lbrace \|x_i^A - x_j^A\| \rbrace,
              \lbrace \|x_i^B - x_j^B\| \rbrace
              \bigr)

    over random disjoint halves A and B of the features. It is published as a measure of how
    redundant a representation is, but it depends on the basis: a rotation that keeps every
    distance between examples can move it from 0 to 0.9, as below. So compare states of one run
    in one basis, never two models.

    Args:
      representation: [examples, ...]; further axes are features, at least two.
      splits: how many random halves; or pairs of indices of features.
      seed: of the halves.

    Returns:
      The mean rank correlation, in [-1, 1].

    Raises:
      ValueError: for fewer than three examples or two features, numbers that are not finite, or
        no splits.

    Example:
      >>> import numpy as np
      >>> import fgo_jax as fgo
      >>> rng = np.random.default_rng(0)
      >>> x = rng.standard_normal((100, 16)) * np.append(10.0, np.ones(15))  # one large feature
      >>> bool(abs(fgo.analysis.feature_split(x)) < 0.1)
      True
      >>> spread = np.linalg.qr(np.c_[np.ones(16), rng.standard_normal((16, 15))])[0]
      >>> bool(fgo.analysis.feature_split(x @ spread.T) > 0.8)  # the same distances
      True

    Source: ``feature_split`` of arXiv 2601.09173, from the definition. That it depends on the
    basis is shown here.
    """
    x = _rows("representation", representation)
    size = x.shape[1]
    if size < 2:
        raise ValueError(f"feature_split needs at least two features, got {size}.")
    if isinstance(splits, int):
        _checks.positive_int("splits", splits)
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(size) for _ in range(splits)]
        splits = [(order[: size // 2], order[size // 2 : 2 * (size // 2)]) for order in orders]
    if not splits:
        raise ValueError("splits must hold at least one pair of halves.")
    reach = _rounding(representation, x)
    pairs = [[_distances(x[:, np.asarray(half)]) for half in halves] for halves in splits]
    return float(np.mean([_spearman(one, other, (reach, reach)) for one, other in pairs]))


def _rows(name: str, representation: Any) -> np.ndarray:
    """[examples, features], float64."""
    x = np.asarray(representation, np.float64)
    if x.ndim < 2 or len(x) < 3:
        raise ValueError(f"{name} must be [at least 3 examples, features], got {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds numbers that are not finite.")
    return x.reshape(len(x), -1)


def _distances(x: np.ndarray) -> np.ndarray:
    """Euclidean distances of all pairs of rows, by differences: products would cancel."""
    return np.concatenate([np.linalg.norm(x[i + 1 :] - x[i], axis=1) for i in range(len(x) - 1)])


def _rounding(representation: Any, x: np.ndarray) -> float:
    """Bound on the rounding error of a distance."""
    kind = getattr(representation, "dtype", np.dtype(np.float64))
    eps = jnp.finfo(kind if jnp.issubdtype(kind, jnp.floating) else np.float64).eps
    return 4 * float(eps) * float(np.abs(x).max())


def _spearman(a: np.ndarray, b: np.ndarray, reaches: tuple[float, float]) -> float:
    a, b = (_ranks(*pair) for pair in zip((a, b), reaches, strict=True))
    a, b = a - a.mean(), b - b.mean()
    power = np.dot(a, a) * np.dot(b, b)
    return float(np.dot(a, b) / power**0.5) if power > 0 else float("nan")


def _ranks(x: np.ndarray, reach: float) -> np.ndarray:
    """Ranks from 1; numbers within reach of each other share their mean."""
    values, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    reach = max(reach, float(np.finfo(np.float64).tiny))
    # A rotation splits equal distances by their rounding. Neighbours within reach are one
    # number; a longer chain is cut at every reach.
    first = np.diff(values, prepend=-np.inf) > reach
    offsets = (values - values[first][np.cumsum(first) - 1]) // reach
    group = np.cumsum(first | (np.diff(offsets, prepend=0.0) != 0)) - 1
    counts = np.bincount(group, counts)
    return (np.cumsum(counts) - (counts - 1) / 2)[group[which]]
