"""What is claimed, of whom, at which level, and what the races say about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks import statistics as evidence
from benchmarks.report.reading import CLAIM_TASKS
from benchmarks.report.text import known

FIT = 0.6  # of T: a level that the rival reaches before is easy


class Bar(NamedTuple):
    """On `tasks` tasks the ratio is at most `ratio`, or less than that."""

    ratio: float
    tasks: int
    less: bool = False

    def met_by(self, ratio: float) -> bool:
        return ratio < self.ratio if self.less else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'less than' if self.less else 'at most'} {self.ratio:g}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One method's steps or seconds over another's, on several tasks.

    Attributes:
      key: over its column.
      words: what is claimed.
      ours: the method that should need less.
      rival: whose own hit is the denominator; None for the reference of the level.
      levels: where it is read: the first of these that holds both methods.
      bars: all must hold.
      worst: no task may have a larger ratio; None where nothing is said.
      unit: of the ratio.
    """

    key: str
    words: str
    ours: str
    rival: str | None
    levels: tuple[str, ...]
    bars: tuple[Bar, ...]
    worst: float | None = None
    unit: Literal["steps", "seconds"] = "steps"


_ALONE, _AVERAGED = "natural_gradient", "natural_gradient_averaged"
_SQRT = "natural_gradient_1_over_sqrt_t_averaged"
_FIRST = ("constant", "fixed")
_FEWER = (Bar(1.0, 4, less=True), Bar(0.95, 3))
# A fixed target is the claim's as well.
_CLAIM, _CLAIM_SQRT = ("claim",), ("claim_sqrt", "claim", "fixed")

CLAIMS = (
    Claim("(a)", "raw weights, against the refinement alone at a constant rate",
          "fgo", _ALONE, _CLAIM, (Bar(0.65, 4),), 1.0),
    Claim("(b)", "averaged weights, against the refinement alone, averaged",
          "fgo_averaged", _AVERAGED, _CLAIM, (Bar(0.85, 4),), 1.02),
    Claim("(b) late", "the same at the level that the averaged refinement ends with",
          "fgo_averaged", _AVERAGED, ("late",), (Bar(0.85, 4),), 1.02),
    Claim("(c)", "averaged weights, against the refinement at 1/sqrt(t), averaged",
          "fgo_averaged", _SQRT, _CLAIM_SQRT, _FEWER),
    Claim("(c) late", "the same at the late level",
          "fgo_averaged", _SQRT, ("late_sqrt", "late"), _FEWER),
    Claim("horizon", "averaged weights, against the refinement's best schedule that knows T",
          "fgo_averaged", None, ("horizon",), (Bar(1.0, 4),)),
    Claim("two-step", "raw weights, against the refinement's two-step rate, which knows T",
          "fgo", "natural_gradient_two_step", ("claim", "fixed"), (Bar(0.8, 4),)),
    Claim("two-step, averaged", "averaged weights, against the raw ones of that two-step rate",
          "fgo_averaged", "natural_gradient_two_step", ("claim", "fixed"), (Bar(0.8, 4),)),
    Claim("s / Adam", "seconds, raw weights, against Adam at a constant rate",
          "fgo", "constant", _FIRST, (Bar(0.75, 4),), unit="seconds"),
    Claim("s / alone", "seconds, raw weights, against the refinement alone",
          "fgo", _ALONE, _CLAIM, (Bar(0.85, 4),), unit="seconds"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Paired by seed.

    Attributes:
      ratio: median with its interval, as `evidence.summary` gives it.
      own: the rival's median hit over T; more than 1 where it has none.
      level: where it was read.
      rival: whose own hits are the denominators.
    """

    ratio: Mapping[str, Any]
    own: float
    level: str
    rival: str

    @property
    def easy(self) -> bool:
        """Whether the rival is there so early that little is decided."""
        return self.own <= FIT


def compare(race: Mapping[str, Any], claim: Claim) -> Comparison | None:
    """What a race says about a claim; None where it says nothing."""
    for name in claim.levels:
        level = race["levels"].get(name)
        if level is None:
            continue
        rival = level["references"]["raw"] if claim.rival is None else claim.rival
        rows = level["methods"]
        if claim.ours in rows and rival in rows:
            ratio = evidence.summary(paired(race, rows[claim.ours], rival, rows[rival], claim.unit))
            own = evidence.middle(known(rows[rival]["steps"]["values"])) / race["num_steps"]
            return Comparison(ratio, own, name, rival)
    return None


def paired(
    race: Mapping[str, Any], ours: Mapping[str, Any], rival: str, theirs: Mapping[str, Any], unit
) -> np.ndarray:
    """Ratios seed by seed; a rival that never hits counts as T, or the seconds of T steps."""
    horizon = race["num_steps"]
    limit = horizon if unit == "steps" else horizon * race["step_times"][rival]["seconds"]
    return evidence.paired_ratios(known(ours[unit]["values"]), known(theirs[unit]["values"]), limit)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What all races together say about a claim.

    Attributes:
      found: what each of the claim's tasks says, where it says something.
      held: for each bar, the tasks whose median ratio meets it.
      worse: the tasks beyond `claim.worst`.
      word: met, missed, or open while races that could decide are not held.
    """

    claim: Claim
    found: Mapping[str, Comparison]
    held: tuple[tuple[str, ...], ...]
    worse: tuple[str, ...]
    word: Literal["met", "missed", "open"]


def judge(races: Mapping[str, Any], claim: Claim) -> Verdict:
    """Counts the claim's tasks; other races, and quick looks, do not count."""
    counted = {t: races[t] for t in CLAIM_TASKS if t in races and races[t]["evidence"]}
    compared = {task: compare(race, claim) for task, race in counted.items()}
    found = {task: c for task, c in compared.items() if c is not None}
    ratios = {task: c.ratio["median"] for task, c in found.items()}
    held = tuple(
        tuple(task for task, ratio in ratios.items() if bar.met_by(ratio)) for bar in claim.bars
    )
    worse = tuple(t for t, r in ratios.items() if claim.worst is not None and r > claim.worst)
    unknown = len(CLAIM_TASKS) - len(found)
    wanted = [(len(tasks), bar.tasks) for tasks, bar in zip(held, claim.bars, strict=True)]
    if worse or any(number + unknown < least for number, least in wanted):
        word = "missed"
    elif unknown == 0 or (claim.worst is None and all(n >= least for n, least in wanted)):
        word = "met"
    else:
        word = "open"
    return Verdict(claim, found, held, worse, word)
