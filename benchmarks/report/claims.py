"""What is claimed, against which method, at which level, and what the races say about it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from benchmarks import statistics
from benchmarks.report.text import known

# The tasks that the claim is about; the other bowls are the same task with other noise.
CLAIM_TASKS = (
    "quadratic_bowl", "digits_vit", "char_gpt", "digits_autoencoder", "mnist5k_vit",
    "modular_addition",
)  # fmt: skip
FIT = 0.6  # of T: a level that the rival reaches before is easy
EASY, EDGE = "°", "†"


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
    """One method's steps or seconds over another's, on several tasks."""

    key: str  # over its column
    words: str
    ours: str  # the method that should need less
    rival: str | None  # whose own hit is the denominator; None for the level's reference
    levels: tuple[str, ...]  # read at the first of these that holds both methods
    bars: tuple[Bar, ...]  # all must hold
    worst: float | None = None  # no task may have a larger ratio
    unit: Literal["steps", "seconds"] = "steps"
    later: bool = False  # than the first races: a goal set then is none


_ALONE, _AVERAGED = "natural_gradient", "natural_gradient_averaged"
_SQRT, _FIRST = "natural_gradient_1_over_sqrt_t_averaged", ("constant", "fixed")
_FEWER = (Bar(1.0, 4, less=True), Bar(0.95, 3))
_CLAIM, _CLAIM_SQRT = ("claim",), ("claim_sqrt", "claim", "fixed")  # fixed: the claim's as well

CLAIMS = (
    Claim("(a)", "last weights, against the base at a constant rate",
          "fgo", _ALONE, _CLAIM, (Bar(0.65, 4),), 1.0),
    Claim("(b)", "averaged weights, against the base, averaged",
          "fgo_averaged", _AVERAGED, _CLAIM, (Bar(0.85, 4),), 1.02),
    Claim("(b) late", "the same at the level that the averaged base ends with",
          "fgo_averaged", _AVERAGED, ("late",), (Bar(0.85, 4),), 1.02),
    Claim("(c)", "averaged weights, against the base at 1/sqrt(t), averaged",
          "fgo_averaged", _SQRT, _CLAIM_SQRT, _FEWER),
    Claim("(c) late", "the same at the late level",
          "fgo_averaged", _SQRT, ("late_sqrt", "late"), _FEWER),
    Claim("horizon", "averaged weights, against the base's best schedule that knows T",
          "fgo_averaged", None, ("horizon",), (Bar(1.0, 4),)),
    Claim("two-step", "last weights, against the base's two-step rate, which knows T",
          "fgo", "natural_gradient_two_step", ("claim", "fixed"), (Bar(0.8, 4),)),
    Claim("two-step, averaged", "averaged weights, against the last ones of that two-step rate",
          "fgo_averaged", "natural_gradient_two_step", ("claim", "fixed"), (Bar(0.8, 4),),
          later=True),
    Claim("Adam's cosine", "averaged weights, against Adam with a cosine that knows T",
          "fgo_averaged", "cosine", ("cosine", "fixed"), (Bar(1.0, 4),), later=True),
    Claim("s / Adam", "seconds, last weights, against Adam at a constant rate",
          "fgo", "constant", _FIRST, (Bar(0.75, 4),), unit="seconds"),
    Claim("s / alone", "seconds, last weights, against the base",
          "fgo", _ALONE, _CLAIM, (Bar(0.85, 4),), unit="seconds"),
    Claim("(b) s", "(b) in seconds", "fgo_averaged", _AVERAGED, _CLAIM,
          (Bar(0.85, 4),), unit="seconds", later=True),
    Claim("(c) s", "(c) in seconds", "fgo_averaged", _SQRT, _CLAIM_SQRT,
          (Bar(0.85, 4),), unit="seconds", later=True),
)  # fmt: skip


class Comparison(NamedTuple):
    """Paired by seed."""

    ratio: Mapping[str, Any]  # a summary: the median with its interval
    own: float  # the rival's median hit over T; inf where it has none
    at_edge: bool  # whether the rival's setting ends its grid

    @property
    def marks(self) -> str:
        """Where the rival is there so early that little is decided, or may be tuned too little."""
        return EASY * (self.own <= FIT) + EDGE * self.at_edge


def compare(race: Mapping[str, Any], claim: Claim) -> Comparison | None:
    """What a race says about a claim; None where it says nothing."""
    for name in (name for name in claim.levels if name in race["levels"]):
        level = race["levels"][name]
        rival, rows = claim.rival or level["references"]["raw"], level["methods"]
        if claim.ours not in rows or rival not in rows:
            continue
        # A rival that never hits counts as T, or as the seconds of T steps.
        horizon = race["num_steps"]
        limit = horizon * (race["step_times"][rival]["seconds"] if claim.unit == "seconds" else 1)
        ours, theirs = (known(rows[m][claim.unit]["values"]) for m in (claim.ours, rival))
        both = min(len(ours), len(theirs))  # rivals outside of the claim have the first seeds alone
        ratio = statistics.summary(statistics.paired_ratios(ours[:both], theirs[:both], limit))
        own = statistics.middle(known(rows[rival]["steps"]["values"])) / horizon
        return Comparison(ratio, own, name in race.get("at_edge", {}).get(rival, ()))
    return None


def evidence(races: Mapping[str, Any]) -> dict[str, Any]:
    """The races that are no quick looks."""
    return {name: race for name, race in races.items() if race["evidence"]}


class Verdict(NamedTuple):
    """What all races together say about a claim."""

    claim: Claim
    found: Mapping[str, Comparison]  # by task, where it says something
    held: tuple[tuple[str, ...], ...]  # for each bar, the tasks whose median ratio meets it
    worse: tuple[str, ...]  # the tasks beyond `claim.worst`
    word: Literal["met", "missed", "open"]  # open while races that could decide are not held


def judge(races: Mapping[str, Any], claim: Claim) -> Verdict:
    """Counts the claim's tasks; other races, and quick looks, do not count."""
    compared = {t: compare(race, claim) for t, race in evidence(races).items() if t in CLAIM_TASKS}
    found = {task: comparison for task, comparison in compared.items() if comparison is not None}
    ratios = {task: comparison.ratio["median"] for task, comparison in found.items()}
    held = tuple(tuple(t for t, ratio in ratios.items() if bar.met_by(ratio)) for bar in claim.bars)
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
