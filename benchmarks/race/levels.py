"""The targets of a race, and whose own hit each is measured against."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from benchmarks import statistics
from benchmarks.methods import METHODS, Method
from benchmarks.runs.training import Curves
from benchmarks.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Level:
    """A target.

    Attributes:
      name: key in the results.
      title: over its table.
      target: the level of the smoothed metric.
      references: `{"raw": method, "averaged": method}`, whose own hits are the
        denominators of the methods judged by those weights.
      rows: the methods of its table, or None for all.
    """

    name: str
    title: str
    target: float
    references: Mapping[str, str]
    rows: tuple[str, ...] | None = None

    def reference(self, method: Method) -> str:
        return self.references[method.weights]

    def has(self, method: Method) -> bool:
        return self.rows is None or method.name in self.rows


ADAM = {"raw": "constant", "averaged": "constant"}
# The refinement of the phases by itself, at a constant rate and at 1/sqrt(t).
ALONE = {"raw": "natural_gradient", "averaged": "natural_gradient_averaged"}
SQRT = {
    "raw": "natural_gradient_1_over_sqrt_t",
    "averaged": "natural_gradient_1_over_sqrt_t_averaged",
}
HORIZON = ("natural_gradient_cosine", "natural_gradient_wsd_1_minus_sqrt")
# What shows what phases add: the refinement with and without them, and Adam, with whose
# seconds every table is to be compared.
_PHASED = tuple(method.name for method in METHODS.values() if method.phased)
_REFINEMENTS = tuple(name for name in METHODS if name.startswith("natural_gradient"))
CLAIM_ROWS = ("constant", *_REFINEMENTS, *_PHASED)
_SQRT_ROWS = ("constant", *SQRT.values(), *_PHASED)

# Trials of a trajectory: for each setting of its grid, one run per tuning seed.
Trials = Sequence[Sequence[Curves]]


class _Measured(NamedTuple):
    """What the best setting of the best of some trajectories ends with."""

    trajectories: tuple[str, ...]
    end: Callable[[Curves], float]


class _Source(NamedTuple):
    """A level whose target may still have to be measured."""

    name: str
    title: str
    target: float | _Measured
    references: Mapping[str, str] | None  # None: the trajectory that ended best
    rows: tuple[str, ...] | None = None


def _sources(task: Task) -> list[_Source]:
    # Where a hit must last to the very end, so must the target: a mean would be left again.
    tail = statistics.final_level if task.hold is not None else statistics.kept_level
    adam = _Measured(("constant",), lambda c: tail(c.raw))
    cosine = _Measured(("cosine",), lambda c: statistics.end_value(c.raw, task.smoothing))
    alone = _Measured(("natural_gradient",), lambda c: tail(c.raw))
    late = _Measured(("natural_gradient",), lambda c: tail(c.averaged))
    horizon = _Measured(HORIZON, cosine.end)
    by_itself = "what the refinement alone, at a constant rate, ends with"
    averaged = f"{by_itself} when averaged"
    if task.target is not None:
        first = [_Source("fixed", f"{task.metric} {task.target:g}", task.target, ADAM)]
    else:
        first = [
            _Source("constant", "what the tuned constant rate ends with", adam, ADAM),
            _Source("cosine", "what cosine tuned for exactly T ends with", cosine, ADAM),
        ]
    claim = alone if task.target is None else task.target
    return [
        *first,
        _Source("claim", f"the claim's rows: {by_itself}", claim, ALONE, CLAIM_ROWS),
        _Source("claim_sqrt", f"against 1/sqrt(t): {by_itself}", claim, SQRT, _SQRT_ROWS),
        _Source("late", averaged, late, ALONE, CLAIM_ROWS),
        _Source("late_sqrt", f"against 1/sqrt(t): {averaged}", late, SQRT, _SQRT_ROWS),
        _Source("horizon", "what the refinement's best schedule that knows T ends with",
                horizon, None, CLAIM_ROWS),
    ]  # fmt: skip


def _entering(task: Task, trajectories: Collection[str]) -> list[_Source]:
    """The levels whose references, and whose targets' sources, are among `trajectories`."""

    def has_all(source: _Source) -> bool:
        needed = set((source.references or {}).values())
        if isinstance(source.target, _Measured):
            needed |= set(source.target.trajectories)
        return {name.removesuffix("_averaged") for name in needed} <= set(trajectories)

    return [source for source in _sources(task) if has_all(source)]


def num_targets(task: Task, trajectories: Collection[str]) -> int:
    """How many targets `make_levels` will measure."""
    return len({s.target for s in _entering(task, trajectories) if isinstance(s.target, _Measured)})


def make_levels(
    task: Task,
    trials: Mapping[str, Trials],
    repeat: Callable[[str, int], Sequence[Curves]],
) -> list[Level]:
    """Targets: what the best setting of a trajectory ends with, on seeds that did not choose it.

    Args:
      trials: the tuning runs of each trajectory; a level whose reference is not among them,
        or what its target comes from, is left out.
      repeat: `(trajectory, index of the setting) -> runs` on the target seeds.
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

    levels = []
    for source in _entering(task, trials):
        target, references = source.target, source.references
        if isinstance(target, _Measured):
            target, best = measured(target)
            references = references or {"raw": best, "averaged": best}
        assert references is not None
        levels.append(Level(source.name, source.title, target, references, source.rows))
    return levels


def hit_of(task: Task, method: Method, curves: Curves, target: float) -> float:
    values = statistics.smooth(getattr(curves, method.weights), task.smoothing)
    return statistics.hit(curves.steps, values, target, hold=task.hold, num_steps=task.num_steps)


def final_of(task: Task, method: Method, curves: Curves) -> float:
    return statistics.end_value(getattr(curves, method.weights), task.smoothing)


def level_from(stored: Mapping) -> Level:
    """A level as `dataclasses.asdict` wrote it to JSON."""
    rows = stored["rows"]
    return Level(**{**stored, "rows": None if rows is None else tuple(rows)})
