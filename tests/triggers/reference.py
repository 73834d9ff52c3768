"""The conditions of `fgo.triggers` in plain Python, from what their documentation says.

A judge yields (evaluated, holds, fails) for each observation. `None` for holds or fails says that
rounding may decide, so that the library may say either.
"""

import dataclasses
import math

import numpy as np
from scipy import special


@dataclasses.dataclass(frozen=True)
class Seen:
    """One observation of one signal."""

    value: float
    error: float
    fresh: bool
    phase_step: int
    total_step: int


def followed(judgements, observations, patience):
    """The verdicts of a condition: 1, -1, 0, or None where rounding decides."""
    verdict, streak, out = 0, 0, []
    for (evaluated, holds, fails), seen in zip(judgements, observations, strict=True):
        if seen is not None and distrusted(seen):
            verdict, streak = 0, 0
        elif evaluated:
            if holds is None or (holds and streak is None):
                verdict, streak = None, None
            elif holds:
                streak += 1
                verdict = 1 if streak >= patience else 0
            else:
                streak = 0
                verdict = None if fails is None else -1 if fails else 0
        out.append(verdict)
    return out


def distrusted(seen):
    return seen.fresh and math.isinf(seen.error)


def after(observations, n):
    for seen in observations:
        holds = seen.phase_step >= n["steps"]
        yield True, holds, not holds


def threshold(observations, n, sign):
    for seen in observations:
        margin = 0.0 if math.isnan(seen.error) else n["z"] * seen.error
        excess = sign * (seen.value - n["threshold"])
        yield seen.fresh and math.isfinite(seen.value), excess - margin > 0, excess + margin <= 0


def above(observations, n):
    return threshold(observations, n, 1.0)


def below(observations, n):
    return threshold(observations, n, -1.0)


def plateau(observations, n):
    best = math.inf
    for seen in observations:
        evaluated = seen.fresh and math.isfinite(seen.value)
        better = best == math.inf or seen.value < best - n["rtol"] * abs(best)
        yield evaluated, not better, better
        if evaluated and better and not distrusted(seen):
            best = seen.value


LARGEST = 1e15  # of a signal whose slope is measured


def trend(observations, n, verdicts, logarithm):
    """`verdicts`: (slope, margin) -> (holds, fails)."""
    times, series = [], []
    for seen in observations:
        usable = 0 < seen.value < math.inf if logarithm else abs(seen.value) < LARGEST
        if not (seen.fresh and usable) or distrusted(seen):
            yield False, None, None
            continue
        times.append(math.log(seen.total_step + 1.0))
        series.append(math.log(seen.value) if logarithm else seen.value)
        yield True, *judged(np.array(times), np.array(series), n, verdicts)


def judged(times, series, n, verdicts):
    """(holds, fails), each None if a change within rounding and the approximations alters it."""
    weights = np.exp(-(times[-1] - times) / n["memory"])
    points = weights.sum() ** 2 / (weights**2).sum()
    spread = np.sum(weights * (times - np.average(times, weights=weights)) ** 2)
    if points < n["min_points"] * 0.999 or spread == 0:
        return False, False
    if points < n["min_points"] * 1.001:
        return None, None
    slope = margin = rounding = 0.0
    if np.ptp(series) > 0:
        centred = times - np.average(times, weights=weights)
        slope = np.sum(weights * centred * series) / spread
        residuals = series - np.average(series, weights=weights) - slope * centred
        variance = np.sum(weights * residuals**2) / weights.sum()
        error = math.sqrt(variance / (points - 2.0) / (spread / weights.sum()))
        margin = special.stdtrit(points - 2.0, special.ndtr(n["z"])) * error
        # Of float32 moments; the factors below are of the approximation to Student's quantile.
        rounding = 2e-3 * (abs(slope) + error)
        rounding += 1e-5 * np.max(np.abs(series)) / math.sqrt(spread / weights.sum())
    found = {
        verdicts(slope + a, factor * margin + b)
        for a in (-rounding, 0.0, rounding)
        for b in (0.0, rounding)
        for factor in (0.97, 1.05)
    }
    holds, fails = ({pair[which] for pair in found} for which in (0, 1))
    return holds.pop() if len(holds) == 1 else None, fails.pop() if len(fails) == 1 else None


def stall(observations, n):
    limit = n["tolerance"]
    return trend(
        observations, n, lambda s, m: (abs(s) + m < limit, abs(s) - m > limit), logarithm=True
    )


def stopped_falling(observations, n):
    limit = n["tolerance"]
    return trend(observations, n, lambda s, m: (s - m > -limit, s + m < -limit), logarithm=True)


def decreasing(observations, n):
    return trend(observations, n, lambda s, m: (s + m < 0, s + m >= 0), logarithm=False)


def increasing(observations, n):
    return trend(observations, n, lambda s, m: (s - m > 0, s - m <= 0), logarithm=False)


JUDGES = {
    judge.__name__: judge
    for judge in (after, above, below, plateau, stall, stopped_falling, decreasing, increasing)
}
