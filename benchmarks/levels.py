"""The targets of a race, and whose own hit each is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from benchmarks import evidence
from benchmarks.methods import Method
from benchmarks.tasks.task import Task
from benchmarks.training import Curves


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


_CONSTANT = {"raw": "constant", "averaged": "constant"}
_CLAIM = {"raw": "natural_gradient", "averaged": "natural_gradient_averaged"}
CLAIM_ROWS = ("natural_gradient", "fgo", "natural_gradient_averaged", "fgo_averaged")

# Trials of a trajectory: for each setting of its grid, one run per tuning seed.
Trials = Sequence[Sequence[Curves]]


def make_levels(task: Task, trials: Mapping[str, Trials]) -> list[Level]:
    """Targets from the tuning runs of `constant` and, where they were made, of
    `cosine` and `natural_gradient`."""
    levels = []

    def add(name, title, target, references, rows=None):
        levels.append(Level(name, title, target, references, rows))

    if task.target is not None:
        add("fixed", f"{task.metric} {task.target:g}", task.target, _CONSTANT)
    else:
        target = _lowest(trials["constant"], lambda c: evidence.final_level(c.raw))
        add("constant", "what the tuned constant rate ends with", target, _CONSTANT)
        if "cosine" in trials:
            target = _lowest(trials["cosine"], lambda c: evidence.end_value(c.raw, task.smoothing))
            add("cosine", "what cosine tuned for exactly T ends with", target, _CONSTANT)
    if "natural_gradient" in trials:
        target = task.target
        if target is None:
            runs = trials["natural_gradient"]
            target = _lowest(runs, lambda c: evidence.final_level(c.raw))
        title = "the claim's rows: what the refinement alone, at a constant rate, ends with"
        add("claim", title, target, _CLAIM, CLAIM_ROWS)
    return levels


def _lowest(trials: Trials, level) -> float:
    """The lowest, over settings, of the median over seeds."""
    return min(evidence.middle([level(curves) for curves in runs]) for runs in trials)


def hit_of(task: Task, method: Method, curves: Curves, target: float) -> float:
    values = evidence.smooth(getattr(curves, method.weights), task.smoothing)
    return evidence.hit(curves.steps, values, target, hold=task.hold, num_steps=task.num_steps)


def final_of(task: Task, method: Method, curves: Curves) -> float:
    return evidence.end_value(getattr(curves, method.weights), task.smoothing)


def level_from(stored: Mapping) -> Level:
    """A level as `dataclasses.asdict` wrote it to JSON."""
    rows = stored["rows"]
    return Level(**{**stored, "rows": None if rows is None else tuple(rows)})
