"""Times of several functions, taken in turns, and the bounds that they allow.

A machine's speed drifts, so a time alone means little. Every round runs each function
`repeats` times, in random order, and keeps its fastest time, since whatever else the machine
does only adds. Times of the same round are compared; the result is a median over rounds with
its bootstrap bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from benchmarks.statistics import CONFIDENCE, RESAMPLES


class Bounded(NamedTuple):
    """A median over rounds and its one-sided upper bound."""

    median: float
    upper: float


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    repeats: int = 1,
    renew: Callable[[str], None] = lambda name: None,
) -> dict[str, np.ndarray]:
    """Seconds of each function, [rounds]; each runs once before the clock starts.

    `renew` is called before each run, off the clock: where the memory of a large state happens
    to lie can make a difference that would stay with a function through all rounds.
    """
    rng = np.random.default_rng(0)
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: np.full(rounds, np.inf) for name in functions}
    for index in np.repeat(np.arange(rounds), repeats):
        for name in rng.permutation(list(functions)):
            renew(name)
            began = time.perf_counter()
            jax.block_until_ready(functions[name]())
            seconds[name][index] = min(seconds[name][index], time.perf_counter() - began)
    return seconds


def bounded(*parts: np.ndarray, of: Callable[..., Any] = lambda *medians: sum(medians)) -> Bounded:
    """Median of one value per round, with the upper 95 % bound of its bootstrap.

    Of several parts, measured in rounds of their own: a function `of` their medians.
    """

    def statistic(*samples: np.ndarray, axis: int = -1) -> Any:
        return of(*(np.median(sample, axis=axis) for sample in samples))

    found = stats.bootstrap(
        parts,
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        alternative="less",
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return Bounded(float(statistic(*parts)), float(found.confidence_interval.high))
