"""From curves to claims: targets, hits, tuned settings, paired ratios and their intervals.

A curve has one value per evaluation; NaN is a failed evaluation and never counts as a hit. A level
that is never reached takes `inf` steps, so no median over seeds is too low for it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LAST = 1 / 8  # of a run: what it "ends with"
CONFIDENCE, RESAMPLES = 0.95, 10_000


def smooth(values: ArrayLike, window: int) -> np.ndarray:
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

    Held means: still at or below the target at the first evaluation `hold * num_steps` steps later,
    or at the last one if the run ends before. With `hold=None` no later one may lie above it.
    """
    steps = np.asarray(steps)
    below = np.asarray(values) <= target  # False where NaN
    if hold is None:
        held = np.logical_and.accumulate(below[::-1])[::-1]
    else:
        later = np.searchsorted(steps, steps + hold * num_steps - 1e-9)
        held = below & below[np.minimum(later, len(steps) - 1)]
    return float(steps[held.argmax()]) if held.any() else np.inf


def final_level(values: ArrayLike) -> float:
    """Mean over the last eighth of a run; inf if any of it failed."""
    return _inf_if_failed(_last_eighth(values).mean())


def kept_level(values: ArrayLike) -> float:
    """What a run stays below in its last eighth; inf if any of it failed."""
    return _inf_if_failed(_last_eighth(values).max())


def end_value(values: ArrayLike, window: int) -> float:
    """The smoothed value at the last evaluation; inf if it failed."""
    return _inf_if_failed(smooth(values, window)[-1])


def area(values: ArrayLike) -> float:
    """Mean over a whole run, the area under its curve per step; inf if any of it failed."""
    return _inf_if_failed(np.asarray(values, np.float64).mean())


def _last_eighth(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[-max(round(len(values) * LAST), 1) :]


def _inf_if_failed(value: np.floating) -> float:
    return float(value) if np.isfinite(value) else np.inf


def middle(values: ArrayLike) -> float:
    """The median, with inf for what was never reached."""
    return float(np.median(np.nan_to_num(values, nan=np.inf, posinf=np.inf)))


def interval(values: ArrayLike) -> tuple[float, float]:
    """Bootstrap percentile interval of the median over seeds.

    Of up to five values this is their whole range: a resample's median is the least of n = 5
    with probability .058, more than the interval leaves out on a side. Of seven values it
    leaves one out on either side. See :func:`coverage`.
    """
    values = np.sort(np.asarray(values, np.float64))
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.median(values[draws], axis=1)
    # Order statistics: scipy's bootstrap interpolates, which would turn an inf into a NaN.
    tail = (1 - CONFIDENCE) / 2
    return (
        float(np.quantile(medians, tail, method="lower")),
        float(np.quantile(medians, 1 - tail, method="higher")),
    )


def coverage(seeds: int) -> float:
    """With what probability the interval of so many independent values covers the true median.

    It misses the median if at most as many values lie on one side of it as the interval leaves
    out there. With five values it covers .94, with three .75.
    """
    left_out = math.floor(interval(np.arange(seeds))[0])
    return 1 - 2 * float(stats.binom.cdf(left_out, seeds, 0.5))


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


def ladder(values: Sequence[np.ndarray], window: int, lowest: float, rungs: int = 9) -> np.ndarray:
    """Targets from what the reference has a quarter of the way in, down to `lowest`."""
    quarter = np.asarray([smooth(v, window)[len(v) // 4] for v in values])
    known = quarter[~np.isnan(quarter)]
    start = float(np.median(known)) if known.size else np.nan
    if not start > lowest > 0:
        return np.asarray([lowest])
    return np.geomspace(start, lowest, rungs)
