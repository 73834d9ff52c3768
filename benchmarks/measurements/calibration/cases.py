"""What is calibrated: triggers, streams on which they must not fire, and changes to be seen."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.measurements.calibration import simulate, streams
from benchmarks.measurements.calibration.probe_noise import Bank, window_steps
from benchmarks.measurements.calibration.simulate import Span
from benchmarks.measurements.calibration.streams import Course
from fgo_jax import protocol, triggers
from fgo_jax.triggers import Trigger

NUM_STEPS = 20_000
BATCH = 500  # runs at a time: 20,000 looks at four signals are 400 MB
VALIDATE_EVERY = NUM_STEPS // 200
LOSS_NOISE = 0.1  # of a mini-batch's loss, relative
VALIDATION_NOISE = 0.01
WARMUP, HANDOVER = 100, 40  # the defaults of target_acquisition
REASK_START = 300  # about where acquisition ends at its earliest

# Signals that none of a composite's conditions objects to.
NOISY, AGREEING, FALLING_LOSS = 0.1, 0.8, Course(-0.3)
Banks = Mapping[float, Bank]  # by the agreement that they were measured at
Build = Callable[[Banks, int, np.random.Generator], tuple[np.ndarray, simulate.Signals]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A trigger on one kind of stream.

    Attributes:
      trigger: name in `TRIGGERS`.
      stream: what the stream is, in words.
      noise: kind of the noise.
      kind: "null": the phase must not end; "change": it should, from `change` on; "rest": it
        may at any time, and it is stated when it does.
      build: banks, runs, generator -> looks, and signals [runs, looks].
      change: step from which on firing is right.
      edge: whether a null lies on the boundary of what the trigger tests.
      dense: whether there is a look at every step.
    """

    trigger: str
    stream: str
    noise: str
    kind: str
    build: Build
    change: float = 0.0
    edge: bool = False
    dense: bool = False


ELEMENTARY: dict[str, tuple[Callable[[], Trigger], Span]] = {
    "stall": (lambda: triggers.stall("intrinsic_dimension"), Span(REASK_START, HANDOVER)),
    "stopped_falling": (lambda: triggers.stopped_falling("intrinsic_dimension"), Span(0, WARMUP)),
    "decreasing": (lambda: triggers.decreasing("intrinsic_dimension"), Span()),
    "increasing": (lambda: triggers.increasing("intrinsic_dimension"), Span()),
    "decreasing(loss)": (lambda: triggers.decreasing("loss"), Span()),
    "increasing(loss)": (lambda: triggers.increasing("loss"), Span()),
    "above": (lambda: triggers.above("intrinsic_dimension", 1.0), Span()),
    "below": (lambda: triggers.below("intrinsic_dimension", 1.0), Span()),
    "below(agreement)": (lambda: triggers.below("agreement", 0.75), Span()),
    "plateau": (lambda: triggers.plateau("validation"), Span()),
}
SHIPPED: dict[str, tuple[Callable[[], Trigger], Span]] = {
    "acquisition": (protocol.default_acquisition_trigger, Span(0, WARMUP)),
    "reask": (protocol.default_reask_trigger, Span(REASK_START, HANDOVER)),
    "stop": (protocol.default_stop_trigger, Span(REASK_START)),
}
TRIGGERS = {**ELEMENTARY, **SHIPPED}


def measured(
    course: Course,
    noise: str,
    span: Span,
    agreement: float = NOISY,
    loss: Course | None = None,
    noisy_from: float = math.inf,
) -> Build:
    """The default probe's signals, and a loss where one is given.

    From step `noisy_from` on gradients agree no more than where they are noise.
    """
    windows = window_steps(NUM_STEPS)
    # A verdict changes only where something is measured, or when the phase is long enough.
    looks = np.union1d(windows, [span.start, span.start + span.minimum - 1])
    if loss is not None:
        looks = np.arange(NUM_STEPS)

    def build(banks: Banks, runs: int, rng: np.random.Generator):
        bank, count = banks[agreement], len(windows)
        dimension = streams.dimension(course, noise, bank, windows, runs, rng)
        agrees = streams.agreement(agreement, bank, runs, count, rng)
        if noisy_from < NUM_STEPS:
            noise_only = streams.agreement(NOISY, banks[NOISY], runs, count, rng)
            agrees = streams.followed_by(agrees, noise_only, windows >= noisy_from)
        signals = {
            "intrinsic_dimension": streams.at(looks, windows, dimension),
            "agreement": streams.at(looks, windows, agrees),
        }
        if loss is not None:
            signals["loss"] = streams.metric(loss, LOSS_NOISE, "normal", looks, runs, rng)
        return looks, signals

    return build


def reported(name: str, course: Course, noise: str, spread: float, every: int = 1) -> Build:
    """A loss at every step, or a validation loss now and then."""

    def build(banks: Banks, runs: int, rng: np.random.Generator):
        del banks
        looks = np.arange(every - 1, NUM_STEPS, every)
        return looks, {name: streams.metric(course, spread, noise, looks, runs, rng)}

    return build


@functools.cache
def _simulator(trigger: str) -> Callable[[np.ndarray, simulate.Signals], np.ndarray]:
    make, span = TRIGGERS[trigger]
    return simulate.simulator(make(), span)


def run(case: Case, banks: Banks, runs: int, seed: int = 0) -> np.ndarray:
    """[runs]: the step at which each run's phase was ended; inf for never."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(0, runs, BATCH):
        looks, signals = case.build(banks, min(BATCH, runs), rng)
        batches.append(_simulator(case.trigger)(looks, signals))
    return np.concatenate(batches)[:runs]


def result(case: Case, fired: np.ndarray) -> dict[str, Any]:
    """A case's row of the table."""
    row = {"trigger": case.trigger, "stream": case.stream, "noise": case.noise, "kind": case.kind}
    if case.kind == "change":
        grid = window_steps(NUM_STEPS)
        if case.trigger in ("plateau", "stop"):
            grid = np.arange(VALIDATE_EVERY - 1, NUM_STEPS, VALIDATE_EVERY)
        return row | simulate.delay(fired, case.change, grid)
    return row | {"edge": case.edge} | simulate.false_alarms(fired)
