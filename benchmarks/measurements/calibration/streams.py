"""Synthetic signals: a planted course of the logarithm over log t, and noise on it."""

import dataclasses
import math

import numpy as np
from scipy import signal as filters

from benchmarks.measurements.calibration.probe_noise import Bank
from fgo_jax.triggers import Signal

NOISES = ("measured", "normal", "student", "autoregressive")
STUDENT_FREEDOM = 2.5  # a variance, and no third moment
MEMORY = 0.7  # of the autoregressive noise, from one measurement to the next


@dataclasses.dataclass(frozen=True)
class Course:
    """A piecewise power law: t^before until a change, then t^after for a while, then flat.

    With u = log(t / change): log x = before * min(u, 0) + after * clip(u, 0, log rest).
    """

    before: float  # log-log slope until the change
    change: float = math.inf  # the step of it; inf for none
    after: float = 0.0  # log-log slope from there on
    rest: float = math.inf  # factor of t over which it lasts
    level: float = 0.0  # added to log x

    def log(self, steps: np.ndarray) -> np.ndarray:
        time = np.log(steps + 1.0)
        if math.isinf(self.change):
            return self.level + self.before * time
        gap = time - math.log(self.change)
        after = self.after * np.clip(gap, 0.0, math.log(self.rest))
        return self.level + self.before * np.minimum(gap, 0.0) + after


def noise(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """[runs, measurements]: noise of unit scale.

    - normal;
    - student: Student's t of 2.5 degrees of freedom, whose standard deviation is 2.2;
    - autoregressive: x' = 0.7 x + e: a walk without drift that returns to its mean.
    """
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "student":
        return rng.standard_t(STUDENT_FREEDOM, shape)
    if kind == "autoregressive":
        innovations = rng.standard_normal(shape)
        innovations[:, 1:] *= (1.0 - MEMORY**2) ** 0.5  # the first is stationary at once
        return np.asarray(filters.lfilter([1.0], [1.0, -MEMORY], innovations))
    raise ValueError(f"kind must be one of {', '.join(NOISES[1:])}, got {kind!r}.")


def dimension(
    course: Course, kind: str, bank: Bank, steps: np.ndarray, runs: int, rng: np.random.Generator
) -> Signal:
    """[runs, windows]: the intrinsic dimension, as noisy as the bank and with its errors.

    Of the kinds of :func:`noise`, times the bank's standard deviation, or "measured":
    windows of the probe drawn anew from the bank.
    """
    shape = (runs, len(steps))
    drawn = rng.integers(len(bank.residuals), size=shape)
    if kind == "measured":
        residuals = bank.residuals[drawn] - bank.residuals.mean()
    else:
        residuals = bank.residuals.std() * noise(kind, rng, shape)
    value = np.exp(course.log(steps) + residuals)
    return _signal(value, value * bank.errors[drawn])


def agreement(level: float, bank: Bank, runs: int, count: int, rng: np.random.Generator) -> Signal:
    """[runs, count]: the agreement around a level that the bank was measured at."""
    drawn = rng.integers(len(bank.agreement_residuals), size=(runs, count))
    return _signal(level + bank.agreement_residuals[drawn], bank.agreement_errors[drawn])


def metric(
    course: Course, spread: float, kind: str, steps: np.ndarray, runs: int, rng: np.random.Generator
) -> Signal:
    """[runs, steps]: a loss, the course times noise of `spread`, with no error known."""
    log = course.log(steps) + spread * noise(kind, rng, (runs, len(steps)))
    return _signal(np.exp(log), np.full_like(log, np.nan))


def at(looks: np.ndarray, steps: np.ndarray, signal: Signal) -> Signal:
    """A signal measured at `steps`, as triggers see it at `looks`: held in between."""
    last = np.searchsorted(steps, looks, side="right") - 1
    known, last = last >= 0, np.maximum(last, 0)
    value, error, fresh = (np.asarray(leaf)[:, last] for leaf in signal)
    value, error = (np.where(known, leaf, np.float32(np.nan)) for leaf in (value, error))
    return Signal(value, error, fresh & known & (steps[last] == looks))  # type: ignore[arg-type]


def _signal(value: np.ndarray, error: np.ndarray) -> Signal:
    # Heavy tails times a steep course may leave float32: an inf, which triggers must bear.
    with np.errstate(over="ignore"):
        value, error = value.astype(np.float32), error.astype(np.float32)
    return Signal(value, error, np.ones(value.shape, bool))  # type: ignore[arg-type]
