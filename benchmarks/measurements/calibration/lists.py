"""The cases: every trigger of the library at its defaults, and those that are shipped."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

from benchmarks.measurements.calibration.cases import (
    AGREEING,
    FALLING_LOSS,
    NOISY,
    TRIGGERS,
    VALIDATE_EVERY,
    VALIDATION_NOISE,
    Case,
    measured,
    reported,
)
from benchmarks.measurements.calibration.streams import NOISES, Course

SLOPES = (1.0, 1.5, 2.0, 3.0)  # of null streams, in tolerances: 1 is the edge of the null
CHANGES = (1000, 3000)


def all_cases() -> list[Case]:
    return [*trends(), *loss_trends(), *levels(), *acquisition(), *reask(), *validation()]


def trends() -> Iterator[Case]:
    """`stall`, `stopped_falling`, `decreasing` and `increasing` on the dimension."""
    for noise in NOISES:
        yield from _falling("stopped_falling", noise)
        yield from _moving("stall", noise)
        for name, sign in (("decreasing", -1.0), ("increasing", 1.0)):
            case = functools.partial(_probed, name, noise)
            yield case("stationary", "null", Course(0.0))
            for change in CHANGES:
                course = Course(0.0, change, after=sign)
                verb = "falls" if sign < 0 else "rises"
                yield case(f"{verb} as t from {change} on", "change", course, change=change)


def _falling(name: str, noise: str, changes: Sequence[int] = CHANGES) -> Iterator[Case]:
    """What a trigger on the end of a collapse meets."""
    case = functools.partial(_probed, name, noise)
    yield case("stationary", "rest", Course(0.0))
    yield case("falls as t^-0.5", "rest", Course(-0.5))
    for slope in SLOPES:
        yield case(f"falls as t^-{slope:g}", "null", Course(-slope), edge=slope == 1.0)
    for slope in (1.0, 2.0):
        for change in changes:
            words = f"falls as t^-{slope:g} until {change}, then"
            yield case(f"{words} stays", "change", Course(-slope, change), change=change)
            rebound = Course(-slope, change, after=1.0, rest=3.0)
            yield case(f"{words} rises threefold", "change", rebound, change=change)


def _moving(name: str, noise: str, changes: Sequence[int] = CHANGES) -> Iterator[Case]:
    """What a trigger on standing still meets."""
    case = functools.partial(_probed, name, noise)
    yield case("stationary", "rest", Course(0.0))
    for sign, verb in ((-1.0, "falls"), (1.0, "rises")):
        yield case(f"{verb} as t^{0.5 * sign:g}", "rest", Course(0.5 * sign))
        for slope in SLOPES:
            words = f"{verb} as t^{sign * slope:g}"
            yield case(words, "null", Course(sign * slope), edge=slope == 1.0)
    for slope in (1.0, 2.0):
        for change in changes:
            words = f"rises as t^{slope:g} until {change}, then stays"
            yield case(words, "change", Course(slope, change), change=change)
            turn = Course(-1.0, change / 3.0, after=slope, rest=3.0)
            words = f"falls as t^-1 until {change / 3:.0f}, rises as t^{slope:g} until {change}"
            yield case(f"{words}, then stays", "change", turn, change=change)


def _agreeing(name: str, noise: str) -> Iterator[Case]:
    """A phase's trigger must not fire while gradients still agree."""
    case = functools.partial(_probed, name, noise)
    for level in (AGREEING, 0.9):
        words = f"stationary, agreement {level:g}"
        yield case(words, "null", Course(0.0), agreement=level)


def _probed(
    name: str,
    noise: str,
    stream: str,
    kind: str,
    course: Course,
    *,
    change: float = 0.0,
    edge: bool = False,
    **others,
) -> Case:
    span = TRIGGERS[name][1]
    build = measured(course, noise, span, **others)
    return Case(name, stream, noise, kind, build, change, edge, "loss" in others)


def loss_trends() -> Iterator[Case]:
    """`decreasing` and `increasing` on a loss that is seen at every step."""
    for noise in ("normal", "student"):
        for name, sign in (("decreasing(loss)", -1.0), ("increasing(loss)", 1.0)):

            def case(stream, kind, course, change=0.0, name=name, noise=noise):
                build = reported("loss", course, noise, 0.1)
                return Case(name, stream, noise, kind, build, change, dense=True)

            yield case("stationary", "null", Course(0.0))
            verb = "falls" if sign < 0 else "rises"
            course = Course(0.0, 1000, after=0.3 * sign)
            yield case(f"{verb} as t^{0.3 * sign:g} from 1000 on", "change", course, 1000)


def levels() -> Iterator[Case]:
    """`above` and `below` a threshold of 1, and the agreement's condition."""
    for noise in NOISES:
        for name, sign in (("above", 1.0), ("below", -1.0)):
            case = functools.partial(_probed, name, noise)
            for factor in (1.0, 1.5, 2.0, 4.0):
                words = "at the threshold" if factor == 1.0 else f"a factor {factor:g} short of it"
                course = Course(0.0, level=-sign * math.log(factor))
                yield case(f"stationary, {words}", "null", course, edge=factor == 1.0)
            for change in CHANGES:
                # Within less than a window, from half to twice the threshold or back.
                turn = Course(
                    0.0, change, sign * 20.0, rest=4.0 ** (1 / 20), level=-sign * math.log(2.0)
                )
                yield case(f"fourfold across it at {change}", "change", turn, change=change)
    case = functools.partial(_probed, "below(agreement)", "measured")
    for level in (0.75, AGREEING, 0.9):
        words = f"stationary at {level:g}"
        yield case(words, "null", Course(0.0), agreement=level, edge=level == 0.75)
    yield case(f"stationary at {NOISY:g}", "rest", Course(0.0))


def acquisition() -> Iterator[Case]:
    """The shipped end of the first phase, without and with a loss."""
    for noise in NOISES:
        yield from _falling("acquisition", noise)
        yield from _agreeing("acquisition", noise)
    case = functools.partial(_probed, "acquisition", "measured")
    for slope in SLOPES:
        words = f"falls as t^-{slope:g}, with a falling loss"
        yield case(words, "null", Course(-slope), loss=FALLING_LOSS, edge=slope == 1.0)
    for slope in (0.1, 0.3, 1.0):
        words = f"stationary, loss rises as t^{slope:g}"
        yield case(words, "null", Course(0.0), loss=Course(slope))
    for change in CHANGES:
        words = f"falls as t^-2 until {change}, then stays, with a falling loss"
        yield case(words, "change", Course(-2.0, change), change=change, loss=FALLING_LOSS)


def reask() -> Iterator[Case]:
    """The shipped end of the second phase, which looks at the agreement alone."""
    yield from _agreeing("reask", "measured")
    case = functools.partial(_probed, "reask", "measured")
    yield case("stationary at 0.75", "null", Course(0.0), agreement=0.75, edge=True)
    yield case("stationary", "rest", Course(0.0))
    for change in CHANGES:
        words = f"gradients agree until {change}, then are noise"
        course = Course(0.0)
        yield case(words, "change", course, change=change, agreement=AGREEING, noisy_from=change)


def validation() -> Iterator[Case]:
    """`plateau` and the shipped flag on a validation loss that goes on falling."""
    for name in ("plateau", "stop"):
        for noise in NOISES[1:]:

            def case(stream, kind, course, spread, change=0.0, name=name, noise=noise):
                build = reported("validation", course, noise, spread, VALIDATE_EVERY)
                words = f"{stream}, noise {spread:g}"
                return Case(name, words, noise, kind, build, change)

            for spread in (0.003, VALIDATION_NOISE, 0.03):
                for slope in (0.1, 0.3, 1.0):
                    yield case(f"falls as t^-{slope:g}", "null", Course(-slope), spread)
            yield case("stationary", "rest", Course(0.0), VALIDATION_NOISE)
            for change in CHANGES:
                course = Course(-1.0, change)
                words = f"falls as t^-1 until {change}, then stays"
                yield case(words, "change", course, VALIDATION_NOISE, change)
                turn = Course(-1.0, change, after=0.3)
                words = f"falls as t^-1 until {change}, then rises as t^0.3"
                yield case(words, "change", turn, VALIDATION_NOISE, change)
