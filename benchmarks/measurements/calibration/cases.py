"""What is calibrated: triggers, streams on which they must not fire, and changes to be seen."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.measurements.calibration import simulate, streams
from benchmarks.measurements.calibration.probe_noise import Bank, window_steps
from benchmarks.measurements.calibration.simulate import Phase
from benchmarks.measurements.calibration.streams import NOISES, Course
from fgo_jax import triggers

NUM_STEPS = 20_000
BATCH = 500  # runs at a time: 20,000 looks at four signals are 400 MB
EVERY = {"loss": 1, "validation": NUM_STEPS // 200}  # steps from one value to the next
LOSS_NOISE = 0.1  # of a mini-batch's loss, relative
VALIDATION_NOISE = 0.01
WARMUP, HANDOVER = 100, 40  # the defaults of target_acquisition
REASK_START = 300  # about where acquisition ends at its earliest
SLOPES = (1.0, 1.5, 2.0, 3.0)  # of null streams, in tolerances: 1 is the edge of the null
CHANGES = (1000, 3000)

# Signals that none of a composite's conditions objects to.
NOISY, AGREEING, FALLING_LOSS = 0.1, 0.8, Course(-0.3)
Banks = Mapping[float, Bank]  # by the agreement that they were measured at

_DIMENSION = "intrinsic_dimension"
_ACQUISITION, _REASK = (0, WARMUP), (REASK_START, HANDOVER)
TRIGGERS = {
    "stall": Phase(partial(triggers.stall, _DIMENSION), *_REASK),
    "stopped_falling": Phase(partial(triggers.stopped_falling, _DIMENSION), *_ACQUISITION),
    "decreasing": Phase(partial(triggers.decreasing, _DIMENSION)),
    "increasing": Phase(partial(triggers.increasing, _DIMENSION)),
    "decreasing(loss)": Phase(partial(triggers.decreasing, "loss"), reads="loss"),
    "increasing(loss)": Phase(partial(triggers.increasing, "loss"), reads="loss"),
    "above": Phase(partial(triggers.above, _DIMENSION, 1.0)),
    "below": Phase(partial(triggers.below, _DIMENSION, 1.0)),
    "below(agreement)": Phase(partial(triggers.below, "agreement", 0.75)),
    "plateau": Phase(partial(triggers.plateau, "validation"), reads="validation"),
    # Those that the protocol uses by default.
    "acquisition": Phase(lambda: triggers.defaults()["acquisition"], *_ACQUISITION),
    "reask": Phase(lambda: triggers.defaults()["reask"], *_REASK),
    "stop": Phase(lambda: triggers.defaults()["execution"], REASK_START, reads="validation"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A trigger on one kind of stream."""

    trigger: str  # name in `TRIGGERS`
    noise: str
    stream: str  # in words
    # "null": the phase must not end; "change": it should, from `change` on; "rest": it may at
    # any time, and the result says when it does.
    kind: str
    course: Course  # of the dimension, or of the loss that the trigger reads
    change: float = 0.0  # step from which on firing is right
    edge: bool = False  # whether a null lies on the boundary of what the trigger tests
    agreement: float = NOISY  # of successive gradients
    noisy_from: float = math.inf  # step from which on they agree no more than noise does
    loss: Course | None = None  # beside the probe's signals
    spread: float = LOSS_NOISE  # of the noise on the loss that the trigger reads

    @property
    def dense(self) -> bool:
        """Whether there is a look at every step."""
        return self.loss is not None or TRIGGERS[self.trigger].reads == "loss"


def signals(
    case: Case, banks: Banks, runs: int, rng: np.random.Generator
) -> tuple[np.ndarray, simulate.Signals]:
    """Looks at a case's streams, and its signals [runs, looks]."""
    phase = TRIGGERS[case.trigger]
    if phase.reads in EVERY:
        looks = np.arange(EVERY[phase.reads] - 1, NUM_STEPS, EVERY[phase.reads])
        loss = streams.metric(case.course, case.spread, case.noise, looks, runs, rng)
        return looks, {phase.reads: loss}
    windows = window_steps(NUM_STEPS)
    # A verdict changes only where something is measured, or when the phase is long enough.
    looks = np.union1d(windows, [phase.start, phase.start + phase.minimum - 1])
    if case.dense:
        looks = np.arange(NUM_STEPS)
    bank, count = banks[case.agreement], len(windows)
    dimension = streams.dimension(case.course, case.noise, bank, windows, runs, rng)
    agreement = streams.agreement(case.agreement, bank, runs, count, rng)
    if case.noisy_from < NUM_STEPS:
        later = windows >= case.noisy_from
        noise_only = streams.agreement(NOISY, banks[NOISY], runs, count, rng)
        agreement = jax.tree.map(lambda a, b: np.where(later, b, a), agreement, noise_only)
    found = {
        _DIMENSION: streams.at(looks, windows, dimension),
        "agreement": streams.at(looks, windows, agreement),
    }
    if case.loss is not None:
        found["loss"] = streams.metric(case.loss, LOSS_NOISE, "normal", looks, runs, rng)
    return looks, found


def run(
    case: Case, banks: Banks, runs: int, seed: int = 0,
    settings: Mapping[str, np.ndarray] | None = None, batch: int = BATCH,
) -> np.ndarray:  # fmt: skip
    """[runs]: the step at which each run's phase was ended; inf for never.

    With `settings` of the trigger, [settings] each, it is [settings, runs], of the same streams.
    """
    rng, batches = np.random.default_rng(seed), []
    for _ in range(0, runs, batch):
        looks, found = signals(case, banks, min(batch, runs), rng)
        batches.append(simulate.fired(TRIGGERS[case.trigger], looks, found, settings))
    return np.concatenate(batches, axis=-1)[..., :runs]


def result(case: Case, fired: np.ndarray) -> dict[str, Any]:
    """A case's row of the table."""
    row = {"trigger": case.trigger, "stream": case.stream, "noise": case.noise, "kind": case.kind}
    if case.kind == "change":
        grid = window_steps(NUM_STEPS)
        if TRIGGERS[case.trigger].reads == "validation":
            grid = np.arange(EVERY["validation"] - 1, NUM_STEPS, EVERY["validation"])
        return row | simulate.delay(fired, case.change, grid)
    return row | {"edge": case.edge} | simulate.false_alarms(fired)


def _starting(case: Callable[..., Case], slope: float, changes: Sequence[int]) -> Iterator[Case]:
    """What a trigger on movement meets."""
    yield case("stationary", "null", Course(0.0))
    words = "falls as t" if slope < 0 else "rises as t"
    words += "" if abs(slope) == 1.0 else f"^{slope:g}"
    for change in changes:
        yield case(f"{words} from {change} on", "change", Course(0.0, change, slope), change)


def _falling(case: Callable[..., Case]) -> Iterator[Case]:
    """What a trigger on the end of a collapse meets."""
    yield case("stationary", "rest", Course(0.0))
    yield case("falls as t^-0.5", "rest", Course(-0.5))
    for slope in SLOPES:
        yield case(f"falls as t^-{slope:g}", "null", Course(-slope), edge=slope == 1.0)
    for slope, change in itertools.product((1.0, 2.0), CHANGES):
        words = f"falls as t^-{slope:g} until {change}, then"
        yield case(f"{words} stays", "change", Course(-slope, change), change)
        rebound = Course(-slope, change, after=1.0, rest=3.0)
        yield case(f"{words} rises threefold", "change", rebound, change)


def _moving(case: Callable[..., Case]) -> Iterator[Case]:
    """What a trigger on standing still meets."""
    yield case("stationary", "rest", Course(0.0))
    for sign, verb in ((-1.0, "falls"), (1.0, "rises")):
        yield case(f"{verb} as t^{0.5 * sign:g}", "rest", Course(0.5 * sign))
        for slope in SLOPES:
            words = f"{verb} as t^{sign * slope:g}"
            yield case(words, "null", Course(sign * slope), edge=slope == 1.0)
    for slope, change in itertools.product((1.0, 2.0), CHANGES):
        words = f"rises as t^{slope:g} until {change}, then stays"
        yield case(words, "change", Course(slope, change), change)
        turn = Course(-1.0, change / 3.0, after=slope, rest=3.0)
        words = f"falls as t^-1 until {change / 3:.0f}, rises as t^{slope:g} until {change}"
        yield case(f"{words}, then stays", "change", turn, change)


def _agreeing(case: Callable[..., Case]) -> Iterator[Case]:
    """A phase's trigger must not fire while gradients still agree."""
    for level in (AGREEING, 0.9):
        words = f"stationary, agreement {level:g}"
        yield case(words, "null", Course(0.0), agreement=level)


def _crossing(case: Callable[..., Case], sign: float) -> Iterator[Case]:
    """What a threshold of 1 meets."""
    for factor in (1.0, 1.5, 2.0, 4.0):
        words = "at the threshold" if factor == 1.0 else f"a factor {factor:g} short of it"
        course = Course(0.0, level=-sign * math.log(factor))
        yield case(f"stationary, {words}", "null", course, edge=factor == 1.0)
    for change in CHANGES:
        # Within less than a window, from half to twice the threshold or back.
        below = -sign * math.log(2.0)
        turn = Course(0.0, change, sign * 20.0, rest=4.0 ** (1 / 20), level=below)
        yield case(f"fourfold across it at {change}", "change", turn, change)


def _agreement_levels(case: Callable[..., Case]) -> Iterator[Case]:
    """What the agreement's threshold meets."""
    for level in (0.75, AGREEING, 0.9):
        words = f"stationary at {level:g}"
        yield case(words, "null", Course(0.0), agreement=level, edge=level == 0.75)
    yield case(f"stationary at {NOISY:g}", "rest", Course(0.0))


def _with_loss(case: Callable[..., Case]) -> Iterator[Case]:
    """What the end of acquisition meets where a loss is given."""
    for slope in SLOPES:
        words = f"falls as t^-{slope:g}, with a falling loss"
        yield case(words, "null", Course(-slope), edge=slope == 1.0, loss=FALLING_LOSS)
    for slope in (0.1, 0.3, 1.0):
        words = f"stationary, loss rises as t^{slope:g}"
        yield case(words, "null", Course(0.0), loss=Course(slope))
    for change in CHANGES:
        words = f"falls as t^-2 until {change}, then stays, with a falling loss"
        yield case(words, "change", Course(-2.0, change), change, loss=FALLING_LOSS)


def _no_longer_agreeing(case: Callable[..., Case]) -> Iterator[Case]:
    """What the end of re-ask meets, which looks at the agreement alone."""
    yield case("stationary at 0.75", "null", Course(0.0), agreement=0.75, edge=True)
    yield case("stationary", "rest", Course(0.0))
    for change in CHANGES:
        words = f"gradients agree until {change}, then are noise"
        agreeing = {"agreement": AGREEING, "noisy_from": change}
        yield case(words, "change", Course(0.0), change, **agreeing)


def _improving(case: Callable[..., Case]) -> Iterator[Case]:
    """What a trigger on a validation loss meets that goes on falling."""

    def noisy(words, kind, course, spread=VALIDATION_NOISE, change=0):
        return case(f"{words}, noise {spread:g}", kind, course, change, spread=spread)

    for spread, slope in itertools.product((0.003, VALIDATION_NOISE, 0.03), (0.1, 0.3, 1.0)):
        yield noisy(f"falls as t^-{slope:g}", "null", Course(-slope), spread)
    yield noisy("stationary", "rest", Course(0.0))
    for change in CHANGES:
        words, course = f"falls as t^-1 until {change}, then", Course(-1.0, change)
        yield noisy(f"{words} stays", "change", course, change=change)
        turn = dataclasses.replace(course, after=0.3)
        yield noisy(f"{words} rises as t^0.3", "change", turn, change=change)


_MEASURED, _PLANTED = NOISES[:1], NOISES[1:]
_MET: tuple[tuple[str, Callable[..., Iterator[Case]], Sequence[str]], ...] = (
    ("stopped_falling", _falling, NOISES), ("stall", _moving, NOISES),
    ("decreasing", partial(_starting, slope=-1.0, changes=CHANGES), NOISES),
    ("increasing", partial(_starting, slope=1.0, changes=CHANGES), NOISES),
    ("decreasing(loss)", partial(_starting, slope=-0.3, changes=CHANGES[:1]), _PLANTED[:2]),
    ("increasing(loss)", partial(_starting, slope=0.3, changes=CHANGES[:1]), _PLANTED[:2]),
    ("above", partial(_crossing, sign=1.0), NOISES),
    ("below", partial(_crossing, sign=-1.0), NOISES),
    ("below(agreement)", _agreement_levels, _MEASURED), ("acquisition", _falling, NOISES),
    ("acquisition", _agreeing, NOISES), ("acquisition", _with_loss, _MEASURED),
    ("reask", _agreeing, _MEASURED), ("reask", _no_longer_agreeing, _MEASURED),
    ("plateau", _improving, _PLANTED), ("stop", _improving, _PLANTED),
)  # fmt: skip


def all_cases() -> list[Case]:
    """Every trigger of the library at its defaults, and those that the protocol uses."""
    return [
        case
        for trigger, met, noises in _MET
        for noise in noises
        for case in met(partial(Case, trigger, noise))
    ]
