"""The targets of a race, and whose own hit each is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

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
TARGETS = ("constant", "cosine", "natural_gradient")  # whose ends are targets
CLAIM_ROWS = ("natural_gradient", "fgo", "natural_gradient_averaged", "fgo_averaged")

# Trials of a trajectory: for each setting of its grid, one run per tuning seed.
Trials = Sequence[Sequence[Curves]]


def make_levels(
    task: Task,
    trials: Mapping[str, Trials],
    repeat: Callable[[str, int], Sequence[Curves]],
) -> list[Level]:
    """Targets: what the best setting of a trajectory ends with, on seeds that did not choose it.

    Args:
      trials: the tuning runs of `constant` and, where they were made, of `cosine` and
        `natural_gradient`.
      repeat: `(trajectory, index of the setting) -> runs` on the target seeds.
    """
    levels = []

    def add(name, title, target, references, rows=None):
        levels.append(Level(name, title, target, references, rows))

    def reached(trajectory, level):
        medians = [evidence.middle([level(c) for c in runs]) for runs in trials[trajectory]]
        best = medians.index(min(medians))
        return evidence.middle([level(c) for c in repeat(trajectory, best)])

    def last_eighth(curves):
        return evidence.final_level(curves.raw)

    if task.target is not None:
        add("fixed", f"{task.metric} {task.target:g}", task.target, _CONSTANT)
    else:
        target = reached("constant", last_eighth)
        add("constant", "what the tuned constant rate ends with", target, _CONSTANT)
        if "cosine" in trials:
            target = reached("cosine", lambda c: evidence.end_value(c.raw, task.smoothing))
            add("cosine", "what cosine tuned for exactly T ends with", target, _CONSTANT)
    if "natural_gradient" in trials:
        target = task.target
        if target is None:
            target = reached("natural_gradient", last_eighth)
        title = "the claim's rows: what the refinement alone, at a constant rate, ends with"
        add("claim", title, target, _CLAIM, CLAIM_ROWS)
    return levels


def hit_of(task: Task, method: Method, curves: Curves, target: float) -> float:
    values = evidence.smooth(getattr(curves, method.weights), task.smoothing)
    return evidence.hit(curves.steps, values, target, hold=task.hold, num_steps=task.num_steps)


def final_of(task: Task, method: Method, curves: Curves) -> float:
    return evidence.end_value(getattr(curves, method.weights), task.smoothing)


def level_from(stored: Mapping) -> Level:
    """A level as `dataclasses.asdict` wrote it to JSON."""
    rows = stored["rows"]
    return Level(**{**stored, "rows": None if rows is None else tuple(rows)})
