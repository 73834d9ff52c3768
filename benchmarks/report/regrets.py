"""The triggers at a glance: what could be saved, what is, and what rival triggers would save."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks import statistics
from benchmarks.report.text import number, restored, spread
from benchmarks.studies import study
from benchmarks.studies.which_trigger import DEFAULT, realised

EDGE, EARLIEST = "†", "earliest times"
RATIOS = ("default", "earliest", "best", "oracle")
HEADINGS = (
    "task", "level", "weights", "default triggers", EARLIEST, "best times", "and decay",
    "realised", "regret", "best rival",
)  # fmt: skip
_LEGEND = (
    "Steps to the level over those of the base at its constant rate, for the default "
    "triggers, the first switch times of a grid, its best ones in hindsight "
    f"({EDGE}: at its edge), and the best times and length of the decay. Realised: the share of "
    "what the best times save. Regret: steps over those with the best times, less one, paired by "
    "seed. Best rival: the trigger with the least regret among the others. Everything runs at the "
    "learning rate that was tuned for the default triggers at the claim's level. ∞: missed; -: the "
    "best times save nothing, the default triggers miss the level, or every rival does."
)


class _Reading(NamedTuple):
    task: str
    level: str
    weights: str
    table: Mapping[str, Any]

    def regret(self, trigger: str) -> float:
        earliest = self.table["grid"][self.table["earliest"]]
        row = earliest if trigger == EARLIEST else self.table["rows"][trigger]
        return row["excess"]["median"]


def legend(content: Any) -> str:
    """What the cells mean, and on how many seeds."""
    tables = content.get("tasks", {}).values()
    counts = sorted({len(table["seeds"]) for table in tables if table["evidence"]})
    seeds = " or ".join(map(str, counts))
    return f"{_LEGEND} On the first {seeds} of the race's seeds." if counts else _LEGEND


def rows(content: Any) -> list[tuple[str, ...]]:
    """A row for each task and reading of triggers.json, quick looks left out."""
    found = []
    for reading in _readings(content):
        table, over = reading.table, reading.table["over_reference"]
        rivals = {name: reading.regret(name) for name in table["rows"] if name != DEFAULT}
        rival = min(rivals, key=lambda name: rivals[name], default="")
        regret, share = rivals.get(rival, math.inf), realised(table)
        ratios = {name: spread(over[name], "{:.2f}", beyond="∞") for name in RATIOS}
        ratios["best"] += EDGE * table["at_edge"]
        found.append((
            *reading[:3], *ratios.values(), "-" if math.isnan(share) else f"{share:.0%}",
            spread(table["rows"][DEFAULT]["excess"], "{:+.0%}", beyond="∞"),
            "-" if math.isinf(regret) else _with_regret(rival, regret),
        ))  # fmt: skip
    return found


def sentences(content: Any) -> list[str]:
    """The regret of every trigger: the median over tasks, for each level and reading."""
    readings, lines = list(_readings(content)), []
    for level, weights in dict.fromkeys((reading.level, reading.weights) for reading in readings):
        those = [r for r in readings if (r.level, r.weights) == (level, weights)]
        shared = {EARLIEST}.union(set.intersection(*(set(r.table["rows"]) for r in those)))
        middles = {t: statistics.middle([r.regret(t) for r in those]) for t in shared}
        ordered = sorted(middles, key=lambda trigger: (middles[trigger], trigger))
        listed = ", ".join(_with_regret(trigger, middles[trigger]) for trigger in ordered)
        tasks = f"{len(those)} task{'s' * (len(those) > 1)}"
        lines.append(f"Regret, level {level}, {weights} weights, median over {tasks}: {listed}.")
    return lines


def _readings(content: Any) -> Iterator[_Reading]:
    tables = restored(content.get("tasks", {})).items()
    for level in study.LEVELS:
        for task, table in tables:
            if table["evidence"] and level in table["levels"]:
                for weights, shown in zip(study.READINGS, ("last", "averaged"), strict=True):
                    yield _Reading(task, level, shown, table["levels"][level][weights])


def _with_regret(trigger: str, regret: float) -> str:
    return f"{trigger.removeprefix('fgo_by_')} {number(regret, '{:+.0%}', '∞')}"
