"""The numbers of a spectrum from Krylov spaces, in float64 on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fgo_jax.linalg.operator import student_width
from fgo_jax.probes.probe import Estimate

# Rounding must not add an eigenvalue to a share that is reached exactly.
_ROUNDING = 1e-6
_TINY = float(np.finfo(np.float32).tiny)
# A figure that the last third of the steps changed by more than this share is not resolved.
_UNRESOLVED = 0.5


class Ritz(NamedTuple):
    """Ritz values of one Krylov space, the largest in size first."""

    values: np.ndarray  # [n], float64
    weights: np.ndarray  # [n], float64; of the quadrature; they sum to 1
    residuals: np.ndarray  # [n], float64; |A v - value v|
    coefficients: np.ndarray  # [n, steps], float64; of v in the basis


class Rule(NamedTuple):
    """Nodes and weights that stand for all eigenvalues: sum_i f(l_i) is about sum w f(node)."""

    nodes: np.ndarray  # [n], float64; exact eigenvalues, then Ritz values of the rest
    weights: np.ndarray  # [n], float64; how many eigenvalues each stands for; they sum to d
    starts: np.ndarray  # [n], int; the start of a node, -1 for an exact one
    num_starts: int

    def of_start(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Nodes and weights from one start alone."""
        mine = (self.starts == -1) | (self.starts == start)
        scale = np.where(self.starts == -1, 1.0, float(self.num_starts))
        return self.nodes[mine], (scale * self.weights)[mine]

    def without(self, start: int) -> Rule:
        """The rule of the other starts."""
        others = self.starts != start
        scale = np.where(self.starts == -1, 1.0, self.num_starts / (self.num_starts - 1))
        return Rule(
            self.nodes[others],
            (scale * self.weights)[others],
            self.starts[others],
            self.num_starts - 1,
        )


def ritz_values(matrix: Any, coupling: Any, valid: Any) -> Ritz:
    """Ritz values and vectors of a :class:`fgo_jax.linalg.krylov.Krylov`."""
    used = np.flatnonzero(np.asarray(valid))
    block = coupling.shape[0]
    inner = np.asarray(matrix, np.float64)[np.ix_(used, used)]
    values, vectors = np.linalg.eigh(inner)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order], vectors[:, order]
    first = np.square(vectors[used < block])
    coefficients = np.zeros([len(used), len(valid)])
    coefficients[:, used] = vectors.T
    residuals = np.linalg.norm(np.asarray(coupling, np.float64)[:, used] @ vectors, axis=0)
    return Ritz(values, np.sum(first, 0) / max(len(first), 1), residuals, coefficients)


def fewer_steps(ritz: Ritz, matrix: Any, valid: Any, block: int, dimension: int) -> Ritz | None:
    """The same run stopped after two thirds of its steps; None for a run too short to cut.

    The leading part of the band matrix is that of fewer steps, so this takes no product. An
    exhausted Krylov space, at the latest one of all dimensions, gives every sum exactly; more
    steps change nothing.
    """
    steps = len(valid)
    if len(ritz.values) < steps or steps >= dimension:
        return ritz
    kept = min(-(-2 * steps // 3), steps - block)
    if kept < max(block, 2):  # one step gives no spread of eigenvalues
        return None
    return ritz_values(matrix[:kept, :kept], matrix[kept : kept + block, :kept], valid[:kept])


def combine(exact: np.ndarray, bulks: list[Ritz], dimension: int) -> Rule:
    """The rule of exact eigenvalues, of weight one each, and the quadratures of the rest.

    If no eigenvalue is left over, other Ritz values are rounding, of either sign. They are left
    out: a function of the spectrum, such as a root, could fail on them.
    """
    rest = dimension - len(exact)
    others = bulks if rest else []
    nodes = [exact, *(bulk.values for bulk in others)]
    weights = [np.ones(len(exact)), *(rest / len(bulks) * bulk.weights for bulk in others)]
    starts = [np.full(len(part), index - 1) for index, part in enumerate(nodes)]
    return Rule(np.concatenate(nodes), np.concatenate(weights), np.concatenate(starts), len(bulks))


def moments(rule: Rule, short: Rule | None, exact_residuals: np.ndarray) -> dict[str, Estimate]:
    r"""Trace, trace of the square, participation ratio and negative share.

    The first two are unbiased over the starts for any vectors Q taken exactly. With P the
    projector off them, :math:`\mathrm{tr}\,A = \mathrm{tr}\,QAQ^T + \mathrm{tr}\,PAP` and
    :math:`\mathrm{tr}\,A^2 = \mathrm{tr}\,(QAQ^T)^2 + 2 \|PAQ^T\|^2 +
    \mathrm{tr}\,(PAP)^2`. The middle term holds the squared residuals. The other two hold
    :math:`|\lambda|`, which is no polynomial. Their errors include what the last third of
    the steps changed, from the rule `short` of the first two thirds.
    """
    parts = _parts(rule, exact_residuals)
    means, width = np.mean(parts, axis=0), student_width(rule.num_starts - 1)
    root = rule.num_starts**0.5
    errors = width * np.std(parts, axis=0, ddof=1) / root
    result = {
        "trace": _estimate(means[0], errors[0]),
        "trace_square": _estimate(means[2], errors[2]),
    }
    size, square, negative = means[1:]
    if size <= 0.0 or square <= 0.0:
        nothing = _estimate(np.nan, np.nan)
        return {**result, "participation_ratio": nothing, "negative_share": nothing}
    ratio, share = _ratios(parts)
    before = (np.nan, np.nan) if short is None else _ratios(_parts(short, exact_residuals))
    influence = 2.0 * parts[:, 1] / size - parts[:, 2] / square
    error = width * ratio * np.std(influence, ddof=1) / root
    result["participation_ratio"] = _truncated(ratio, error, before[0])
    influence = parts[:, 3] / size - negative * parts[:, 1] / size**2
    error = width * np.std(influence, ddof=1) / root
    result["negative_share"] = _truncated(share, error, before[1], of=1.0)
    return result


def _parts(rule: Rule, exact_residuals: np.ndarray) -> np.ndarray:
    """[starts, 4]: sums of the eigenvalues, their sizes, squares and negative parts."""
    parts = np.array(
        [
            [np.dot(weights, f(nodes)) for f in (_same, np.abs, np.square, _negative)]
            for nodes, weights in map(rule.of_start, range(rule.num_starts))
        ]
    )
    parts[:, 2] += 2.0 * np.sum(np.square(exact_residuals))
    return parts


def _ratios(parts: np.ndarray) -> tuple[float, float]:
    """The participation ratio and the negative share."""
    size, square, negative = np.mean(parts, axis=0)[1:]
    # Less the variance: the square of an unbiased mean is too large by it.
    size_squared = size**2 - np.var(parts[:, 1], ddof=1) / len(parts)
    return float(size_squared / square), float(negative / size)


def _truncated(value: float, error: float, before: float, of: float | None = None) -> Estimate:
    """A figure whose error includes what the last steps changed; infinite if not resolved."""
    change = abs(value - before)
    if not change <= _UNRESOLVED * (abs(value) if of is None else of):  # also for NaN
        return _estimate(value, np.inf)
    return _estimate(value, np.hypot(error, change))


def energy_rank(rule: Rule, short: Rule | None, energy: float) -> Estimate:
    """The fewest eigenvalues that hold a share of the sum of |eigenvalue|.

    A node may stand for many eigenvalues. The last one counts with a fraction, and the sum is
    rounded up. The error is a jackknife over the starts, of the count with its fraction, and what
    the last third of the steps changed. Where the count may cross a whole number, the error reaches
    the next one.
    """
    fraction = _count(rule, energy)
    if np.isnan(fraction):
        return _estimate(np.nan, np.nan)
    n = rule.num_starts
    others = np.array([_count(rule.without(start), energy) for start in range(n)])
    spread = np.sqrt((n - 1) / n * np.sum(np.square(others - np.mean(others))))
    before = np.nan if short is None else _count(short, energy)
    error = float(_truncated(fraction, student_width(n - 1) * spread, before).error)
    rank, reach = np.ceil(fraction), 1.96 * error
    if np.isinf(error):
        return _estimate(rank, error)
    furthest = max(np.ceil(fraction + reach) - rank, rank - np.ceil(fraction - reach))
    return _estimate(rank, max(error, furthest / 1.96))


def _count(rule: Rule, energy: float) -> float:
    """The rank with its fraction."""
    order = np.argsort(-np.abs(rule.nodes), kind="stable")
    sizes, weights = np.abs(rule.nodes[order]), rule.weights[order]
    held = np.cumsum(sizes * weights)
    if not len(held) or held[-1] <= 0.0:
        return np.nan
    wanted = energy * held[-1] * (1.0 - _ROUNDING)
    last = int(np.argmax(held >= wanted))
    missing = wanted - (held[last - 1] if last else 0.0)
    return float(np.sum(weights[:last]) + missing / sizes[last])


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _negative(values: np.ndarray) -> np.ndarray:
    return np.maximum(-values, 0.0)


def _estimate(value: Any, error: Any) -> Estimate:
    if 0.0 < abs(value) < _TINY:
        error = max(error, _TINY)  # float32 may flush it to zero
    with np.errstate(over="ignore"):
        return Estimate(jnp.float32(value), jnp.float32(error))
