"""The triggers at a glance: what could be saved, what is, and what rival triggers would."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import evidence, study
from benchmarks.report.text import number, restored, spread
from benchmarks.triggers import DEFAULT, realised

LEVEL = study.LEVELS[0]
HEADINGS = (
    "task",
    "weights",
    "default triggers",
    "best fixed times",
    "and decay",
    "realised",
    "regret",
    "best rival",
)
LEGEND = (
    "Steps to the claim's level over those of the refinement at its constant rate, for the default "
    "triggers, the best switch times of a grid in hindsight, and the best times and length of the "
    "decay. Realised: the share "
    "of what the best times save. Regret: steps over those with the best times, less one. Best "
    "rival: the trigger with the least regret among the others."
)


class _Reading(NamedTuple):
    task: str
    weights: str
    table: Mapping[str, Any]

    def regret(self, trigger: str) -> float:
        return self.table["rows"][trigger]["excess"]["median"]


def rows(content: Any) -> list[tuple[str, ...]]:
    """A row for each task and reading of triggers.json, quick looks left out."""
    found = []
    for reading in _readings(content):
        table, ratios = reading.table, reading.table["over_reference"]
        rivals = [name for name in table["rows"] if name != DEFAULT]
        rival = min(rivals, key=reading.regret, default=None)
        share = realised(table)
        found.append(
            (
                reading.task,
                reading.weights,
                *(spread(ratios[k], "{:.2f}", beyond="∞") for k in ("default", "best", "oracle")),
                "-" if math.isnan(share) else f"{share:.0%}",
                spread(table["rows"][DEFAULT]["excess"], "{:+.0%}", beyond="∞"),
                "-" if rival is None else _with_regret(rival, reading.regret(rival)),
            )
        )
    return found


def sentences(content: Any) -> list[str]:
    """The regret of every trigger: the median over tasks, for each reading."""
    readings = list(_readings(content))
    lines = []
    for weights in dict.fromkeys(reading.weights for reading in readings):
        those = [reading for reading in readings if reading.weights == weights]
        shared = set.intersection(*(set(reading.table["rows"]) for reading in those))
        middles = {t: evidence.middle([r.regret(t) for r in those]) for t in shared}
        ordered = sorted(middles, key=lambda trigger: (middles[trigger], trigger))
        listed = ", ".join(_with_regret(trigger, middles[trigger]) for trigger in ordered)
        tasks = f"{len(those)} task{'s' * (len(those) > 1)}"
        lines.append(f"Regret, {weights} weights, median over {tasks}: {listed}.")
    return lines


def _readings(content: Any) -> Iterator[_Reading]:
    for task, table in restored(content.get("tasks", {})).items():
        level = table["levels"].get(LEVEL)
        if table["evidence"] and level is not None:
            for weights in study.READINGS:
                yield _Reading(task, weights, level[weights])


def _with_regret(trigger: str, regret: float) -> str:
    return f"{trigger.removeprefix('fgo_by_')} {number(regret, '{:+.0%}', '∞')}"
