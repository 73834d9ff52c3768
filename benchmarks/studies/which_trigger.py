"""Which trigger: our default against rival ones and against the best switch times in hindsight.

All variants have the same phases, refinement, momentum, decay and averaging. There are two
readings: raw weights of runs at the learning rate and decay tuned for `fgo`, averaged ones at
those of `fgo_averaged`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks import statistics
from benchmarks.methods import METHODS, STUDIED
from benchmarks.race.levels import Level
from benchmarks.report.text import spread
from benchmarks.runs import transitions
from benchmarks.studies import study
from benchmarks.studies.study import Study, Variant
from benchmarks.tasks.task import Task

DEFAULT = "fgo"
# The grid: re-ask begins at a share of T and is as short as the protocol lets it be, or ends at
# a multiple of its first step; the decay is as long as the protocol's own or by a factor
# shorter or longer.
FIRST = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45)
LONGER = 1.8
LENGTHS = (0.25, 4.0)  # at the short re-ask only
ONE_LENGTH = ("char_gpt",)  # where runs are too long for more
LATEST = 0.9  # share of T by which execution must have begun
SHORTEST = 40  # steps of re-ask, which the protocol gives it at the least
# Of what a run measures these are kept, at so many steps.
SIGNALS = ("intrinsic_dimension", "energy_rank", "trace", "agreement")
KEPT = 60

RULE = (
    "regret = steps with the trigger / steps with the best fixed switch times - 1, seed by "
    "seed, median and 95 % bootstrap percentile interval of that median. Best: the lowest "
    "median, over the same seeds, of steps over the reference's, ties by the final value; chosen "
    "in hindsight, which makes the regret too large, among the points of a grid, which makes it "
    "too small. Oracle: the same over lengths of the decay as well, at the shorter re-ask, where "
    "the grid has them. Earliest: its first point. Raw weights at the learning rate tuned for fgo "
    "at the claim's level, averaged ones at that for fgo_averaged, the reference at the rate tuned "
    "for it at each level. Rival triggers thus run at the rate that was tuned for ours."
)


def fixed_times(task: Task) -> list[tuple[int, int]]:
    """(first step of re-ask, first step of execution) for each point of the grid."""
    firsts = [round(share * task.num_steps) for share in FIRST]
    pairs = [(at, later) for at in firsts for later in (at + SHORTEST, round(LONGER * at))]
    latest = LATEST * task.num_steps
    return [(a, b) for a, b in pairs if a >= task.warmup_steps and b <= latest]


def variants(task: Task) -> list[Variant]:
    """Our trigger, the rivals, and every point of the grid."""
    rivals = [
        method
        for method in METHODS.values()
        if method.name.startswith("fgo_by_") and method.weights == "raw"
    ]
    points = [(*pair, 1.0) for pair in fixed_times(task)]
    for length in () if task.name in ONE_LENGTH else LENGTHS:
        points += [(*at, length) for at in fixed_times(task) if at[1] - at[0] == SHORTEST]
    told = [
        Variant(f"at {first}, {second}" + ("" if length == 1 else f", decay x {length:g}"),
                STUDIED["fgo_at_steps"], {"first": float(first), "second": float(second)},
                part="fixed", decay=length)
        for first, second, length in points
    ]  # fmt: skip
    triggers = [METHODS[DEFAULT], *rivals]
    return [*(Variant(m.name, m, part="trigger") for m in triggers), *told]


def ratios(held: Study, level: Level, weights: study.Weights, name: str) -> np.ndarray:
    """Steps over the reference's own, seed by seed."""
    steps, own = held.hits(level, weights, name), held.reference_hits(level, weights)
    return statistics.paired_ratios(steps, own, held.task.num_steps)


def _fixed(held: Study, lengths: tuple[float, ...]) -> dict[str, Variant]:
    """The points of the grid with such lengths of the decay."""
    found = {n: v for n, v in held.variants.items() if v.part == "fixed" and v.decay in lengths}
    if not found:
        raise ValueError(
            f"no switch times of the grid fit into {held.task.num_steps} steps of "
            f"{held.task.name}: give more --steps."
        )
    return found


def best_fixed(
    held: Study, level: Level, weights: study.Weights, lengths: tuple[float, ...] = (1.0,)
) -> str:
    """The name of the best point of the grid among those with such lengths of the decay."""
    names = list(_fixed(held, lengths))
    trials = [
        {"hits": ratios(held, level, weights, n), "finals": held.entries[weights][n].finals()}
        for n in names
    ]
    return names[statistics.best_trial(trials)]


def table_of(held: Study) -> dict[str, Any]:
    """The figures of a task: at each level and reading the triggers, the grid, its best point."""
    grid = {n: (v.setting["first"], v.setting["second"]) for n, v in _fixed(held, (1.0,)).items()}
    earliest = min(grid, key=lambda name: grid[name])  # needs no measurement at all

    def reading(level: Level, weights: study.Weights) -> dict[str, Any]:
        best = best_fixed(held, level, weights)
        oracle = best_fixed(held, level, weights, (1.0, *LENGTHS))
        steps = held.hits(level, weights, best)
        rows = {name: study.row(held, level, weights, name, steps) for name in held.variants}
        firsts = [first for first, _ in grid.values()]
        own = held.reference_hits(level, weights)
        shown = {"default": DEFAULT, "best": best, "oracle": oracle, "earliest": earliest}
        return {
            "best": best, "oracle": oracle, "earliest": earliest,
            "at_edge": grid[best][0] in (min(firsts), max(firsts)),
            "reference": {"name": level.references[weights], "steps": statistics.summary(own)},
            "over_reference": {
                key: statistics.summary(ratios(held, level, weights, name))
                for key, name in shown.items()
            },
            "rows": {n: r for n, r in rows.items() if r["part"] == "trigger"},
            "grid": {n: r for n, r in rows.items() if r["part"] == "fixed"},
        }  # fmt: skip

    fields = {weights: field(held, weights) for weights in study.READINGS}
    return {**study.table_of(held, reading), "field": fields}


def base(reading: Mapping[str, Any]) -> dict[str, Any]:
    """The row that the others of a reading are compared with."""
    return reading["grid"][reading["best"]]


def field(held: Study, weights: study.Weights) -> dict[str, Any]:
    """The signals of the default's runs over training: median and quartiles over the seeds.

    NaN stands where the probe has measured nothing yet.
    """
    runs = held.entries[weights][DEFAULT].curves()
    steps = runs[0].steps
    kept = np.unique(np.linspace(0, len(steps) - 1, min(KEPT, len(steps))).round().astype(int))
    found: dict[str, Any] = {"steps": steps[kept]}
    for name in SIGNALS:
        values = np.stack([run.telemetry[name][kept] for run in runs]).astype(np.float64)
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        found[name] = {"median": median, "low": low, "high": high}
    return found


def caption(reading: Mapping[str, Any]) -> str:
    """What there was to gain on a reading, and what of it the triggers get."""
    own, over = reading["reference"], reading["over_reference"]
    shown = {name: spread(summary, "{:.2f}", beyond="-") for name, summary in over.items()}
    share = realised(reading)
    said = "" if math.isnan(share) else f" Of what the best times save they realise {share:.0%}."
    return (
        f"Steps over those of {own['name']} at its constant rate: default triggers "
        f"{shown['default']}, best fixed times {shown['best']}, with the best decay for them too "
        f"({reading['oracle']}) {shown['oracle']}, as early as the grid allows "
        f"({reading['earliest']}) {shown['earliest']}." + said
    )


def realised(reading: Mapping[str, Any]) -> float:
    """The share that the triggers get of what the best fixed times save; NaN where they do not."""
    default, best = (reading["over_reference"][name]["median"] for name in ("default", "best"))
    return (1 - default) / (1 - best) if math.isfinite(default) and best < 1 else math.nan


HEADINGS = ("trigger", "re-ask", "execution", "by trigger", "steps", "regret", "final", "reached")


def cells(table: dict[str, Any], reading: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of one reading as text, under `HEADINGS`."""
    best = {f"best fixed: {reading['best']}": base(reading)}
    for name, row in {**reading["rows"], **best}.items():
        began = [statistics.middle(steps) for steps in row["started"]]
        yield (
            f"{name} †" if row["note"] else name,
            *(f"{step:.0f}" if math.isfinite(step) else "never" for step in began),
            f"{transitions.by_trigger(row)}/{row['runs']}",
            *study.last_cells(table, row),
        )
