"""The targets of a race, and whose own hit each is measured against."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import statistics
from benchmarks.methods import METHODS, Method
from benchmarks.runs.training import Curves
from benchmarks.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Level:
    """A target."""

    name: str  # key in the results
    title: str  # over its table
    target: float  # of the smoothed metric
    # By the weights that judge a method: whose own hits are its denominators.
    references: Mapping[str, str]
    rows: Sequence[str] | None = None  # the methods of its table, or None for all

    def reference(self, method: Method) -> str:
        return self.references[method.weights]

    def has(self, method: Method) -> bool:
        return self.rows is None or method.name in self.rows


ADAM = {"raw": "constant", "averaged": "constant"}
# The refinement of the phases by itself, at a constant rate and at 1/sqrt(t).
ALONE = {"raw": "natural_gradient", "averaged": "natural_gradient_averaged"}
_ROOT = "natural_gradient_1_over_sqrt_t"
SQRT = {"raw": _ROOT, "averaged": f"{_ROOT}_averaged"}
HORIZON = ("natural_gradient_cosine", "natural_gradient_wsd_1_minus_sqrt")
# What shows what phases add: the refinement with and without them, and Adam, with whose
# seconds every table is to be compared.
_PHASED = tuple(method.name for method in METHODS.values() if method.phased)
_REFINEMENTS = tuple(name for name in METHODS if name.startswith("natural_gradient"))
CLAIM_ROWS = ("constant", *_REFINEMENTS, *_PHASED)
_SQRT_ROWS = ("constant", *SQRT.values(), *_PHASED)


class _Measured(NamedTuple):
    """What the best setting of the best of some trajectories ends with."""

    trajectories: tuple[str, ...]
    end: Callable[[Curves], float]


def _sources(task: Task) -> list[Level]:
    """The levels, with a `_Measured` in place of a target that no one knows yet.

    Without references: those of the trajectory that ends best.
    """
    # Where a hit must last to the very end, so must the target: a mean would be left again.
    tail = statistics.final_level if task.hold is not None else statistics.kept_level
    adam = _Measured(("constant",), lambda c: tail(c.raw))
    cosine = _Measured(("cosine",), lambda c: statistics.end_value(c.raw, task.smoothing))
    alone = _Measured(("natural_gradient",), lambda c: tail(c.raw))
    late = _Measured(("natural_gradient",), lambda c: tail(c.averaged))
    horizon = _Measured(HORIZON, cosine.end)
    by_itself = "what the base, at a constant rate, ends with"
    averaged = f"{by_itself} when averaged"
    claim: Any = alone
    first: list[Any] = [
        ("constant", "what the tuned constant rate ends with", adam, ADAM),
        ("cosine", "what cosine tuned for exactly T ends with", cosine, ADAM),
    ]
    if task.target is not None:
        claim, first = task.target, [("fixed", f"{task.metric} {task.target:g}", task.target, ADAM)]
    rows: list[Any] = [
        *first,
        ("claim", f"the claim's rows: {by_itself}", claim, ALONE, CLAIM_ROWS),
        ("claim_sqrt", f"against 1/sqrt(t): {by_itself}", claim, SQRT, _SQRT_ROWS),
        ("late", averaged, late, ALONE, CLAIM_ROWS),
        ("late_sqrt", f"against 1/sqrt(t): {averaged}", late, SQRT, _SQRT_ROWS),
        ("horizon", "what the base's best schedule that knows T ends with", horizon, {},
         CLAIM_ROWS),
    ]  # fmt: skip
    return [Level(*row) for row in rows]


def _entering(task: Task, trajectories: Collection[str]) -> list[Level]:
    """The levels whose references, and whose targets' sources, are among `trajectories`."""

    def has_all(level: Level) -> bool:
        needed = set(level.references.values())
        if isinstance(level.target, _Measured):
            needed |= set(level.target.trajectories)
        return {name.removesuffix("_averaged") for name in needed} <= set(trajectories)

    return [level for level in _sources(task) if has_all(level)]


def num_targets(task: Task, trajectories: Collection[str]) -> int:
    """How many targets `make_levels` will measure."""
    targets = {level.target for level in _entering(task, trajectories)}
    return sum(isinstance(target, _Measured) for target in targets)


def make_levels(
    task: Task,
    trials: Mapping[str, Sequence[Sequence[Curves]]],  # trajectory -> setting -> seed
    repeat: Callable[[str, int], Sequence[Curves]],
) -> list[Level]:
    """Targets: what the best setting of a trajectory ends with, on seeds that did not choose it.

    Levels whose reference, or whose target's source, has no trials are left out. `repeat` maps
    (trajectory, index of the setting) to runs on the target seeds.
    """

    @functools.cache
    def measured(target: _Measured) -> tuple[float, str]:
        ends = [
            (statistics.middle([target.end(c) for c in runs]), index, name)
            for name in target.trajectories
            for index, runs in enumerate(trials[name])
        ]
        _, index, name = min(ends)
        return statistics.middle([target.end(c) for c in repeat(name, index)]), name

    def known(level: Level) -> Level:
        if not isinstance(level.target, _Measured):
            return level
        target, best = measured(level.target)
        references = level.references or {"raw": best, "averaged": best}
        return dataclasses.replace(level, target=target, references=references)

    return [known(level) for level in _entering(task, trials)]
