"""From curves to claims: targets, hits, tuned settings, paired ratios and their intervals.

Pure numpy. A curve has one value per evaluation; NaN is a failed evaluation and never
counts as a hit. A level that is never reached takes `inf` steps, so a median over seeds
can only land on it or beyond, never below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LAST = 1 / 8  # of a run: what it "ends with"
CONFIDENCE = 0.95
RESAMPLES = 10_000


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Trailing mean over `window` evaluations; NaN until there are as many."""
    values = np.asarray(values, np.float64)
    out = np.full(values.shape, np.nan)
    if len(values) >= window:
        out[window - 1 :] = np.lib.stride_tricks.sliding_window_view(values, window).mean(-1)
    return out


def hit(
    steps: np.ndarray, values: np.ndarray, target: float, *, hold: float | None, num_steps: int
) -> float:
    """The step of the first evaluation that reaches `target` and holds it, else inf.

    Held means: at or below it still at the first evaluation `hold * num_steps` steps
    later, or at the last one if the run ends before. With `hold=None` no later evaluation
    may lie above it.
    """
    steps = np.asarray(steps)
    below = np.asarray(values) <= target  # False where NaN
    if hold is None:
        held = np.logical_and.accumulate(below[::-1])[::-1]
    else:
        later = np.searchsorted(steps, steps + hold * num_steps - 1e-9)
        held = below & below[np.minimum(later, len(steps) - 1)]
    return float(steps[held.argmax()]) if held.any() else np.inf


def final_level(values: np.ndarray) -> float:
    """Mean over the last eighth of a run; inf if any of it failed."""
    tail = np.asarray(values, np.float64)[-max(round(len(values) * LAST), 1) :]
    level = tail.mean()
    return float(level) if np.isfinite(level) else np.inf


def kept_level(values: np.ndarray) -> float:
    """What a run stays below in its last eighth; inf if any of it failed."""
    level = np.asarray(values, np.float64)[-max(round(len(values) * LAST), 1) :].max()
    return float(level) if np.isfinite(level) else np.inf


def end_value(values: np.ndarray, window: int) -> float:
    """The smoothed value at the last evaluation; inf if it failed."""
    last = smooth(values, window)[-1]
    return float(last) if np.isfinite(last) else np.inf


def middle(values: ArrayLike) -> float:
    """The median, with inf for what was never reached."""
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return float(high if np.isinf(high) else (low + high) / 2)


def interval(values: ArrayLike) -> tuple[float, float]:
    """Bootstrap percentile interval of the median over seeds.

    Of up to five values this is their whole range: a resample's median is the least of n = 5
    with probability .058, more than the interval leaves out on a side. Of seven values it
    leaves one out on either side. See :func:`coverage`.
    """
    values = np.sort(np.asarray(values, np.float64))
    n = len(values)
    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    ordered = values[np.sort(draws, axis=1)]
    low, high = ordered[:, (n - 1) // 2], ordered[:, n // 2]
    medians = np.where(np.isinf(high), high, (low + np.where(np.isinf(high), low, high)) / 2)
    # Order statistics, not interpolation, which would turn an inf into a NaN.
    tail = (1 - CONFIDENCE) / 2
    return (
        float(np.quantile(medians, tail, method="lower")),
        float(np.quantile(medians, 1 - tail, method="higher")),
    )


def coverage(seeds: int) -> float:
    """With what probability the interval of so many independent values covers the true median.

    It misses it if at most as many values lie on one side of the median as it leaves out there.
    With five values it covers .94, with three .75.
    """
    left_out = math.floor(interval(np.arange(seeds))[0])
    return 1 - 2 * sum(math.comb(seeds, k) for k in range(left_out + 1)) / 2**seeds


def area(values: np.ndarray) -> float:
    """Mean over a whole run, the area under its curve per step; inf if any of it failed."""
    mean = np.asarray(values, np.float64).mean()
    return float(mean) if np.isfinite(mean) else np.inf


def summary(values: ArrayLike) -> dict[str, Any]:
    low, high = interval(values)
    return {"median": middle(values), "low": low, "high": high, "values": np.asarray(values)}


def paired_ratios(hits: ArrayLike, own_hits: ArrayLike, num_steps: int) -> np.ndarray:
    """Steps over the reference's own hit, seed by seed.

    A reference that never hit counts as T, its smallest possible value, so such a ratio
    is too large rather than too small. A method that never hit stays at inf.
    """
    return np.asarray(hits, np.float64) / np.minimum(np.asarray(own_hits), num_steps)


def best_trial(trials: Sequence[Mapping[str, Any]]) -> int:
    """Index of the trial with the fewest median steps to the target; ties by final value.

    Each trial has `hits` and `finals`, one per tuning seed.
    """
    order = [(middle(t["hits"]), middle(t["finals"]), i) for i, t in enumerate(trials)]
    return min(order)[2]


def lowest_trial(trials: Sequence[Mapping[str, Any]], field: str) -> int:
    """Index of the trial with the lowest median of `field`."""
    return min((middle(t[field]), i) for i, t in enumerate(trials))[1]


def ladder(values: Sequence[np.ndarray], window: int, lowest: float, rungs: int = 9) -> np.ndarray:
    """Targets from what the reference has a quarter of the way in, down to `lowest`."""
    quarter = np.asarray([smooth(v, window)[len(v) // 4] for v in values])
    known = quarter[~np.isnan(quarter)]
    start = float(np.median(known)) if known.size else np.nan
    if not start > lowest > 0:
        return np.asarray([lowest])
    return np.geomspace(start, lowest, rungs)
