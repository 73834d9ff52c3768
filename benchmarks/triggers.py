"""Which trigger: our default against rival ones and against the best switch times that are told.

Everybody has the same phases, refinement, momentum, decay and averaging. Two readings: raw
weights of runs at the learning rate tuned for `fgo` and with its decay, averaged ones at those
of `fgo_averaged`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import evidence, study
from benchmarks.levels import Level
from benchmarks.methods import METHODS, STUDIED
from benchmarks.methods.method import KNOWS_T
from benchmarks.study import Study, Variant
from benchmarks.tasks.task import Task

# The grid of switch times: re-ask begins at a share of T, execution at a multiple of that.
FIRST = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45)
MULTIPLES = (1.25, 1.6, 2.2, 3.0)
LATEST = 0.9  # share of T by which execution must have begun
SHORTEST = 40  # steps of re-ask, which the protocol gives it at the least

RULE = (
    "regret = steps with the trigger / steps with the best fixed switch times - 1, seed by "
    "seed, median and 95 % bootstrap percentile interval of that median. Best: the fewest "
    "median steps over the same seeds, ties by the final value; so the best times are chosen "
    "in hindsight, and the regret is too large rather than too small. Raw weights at the "
    "learning rate tuned for fgo, averaged ones at that tuned for fgo_averaged."
)


def fixed_times(task: Task) -> list[tuple[int, int]]:
    """(first step of re-ask, first step of execution) for each point of the grid."""
    pairs = []
    for share in FIRST:
        first = round(share * task.num_steps)
        for multiple in MULTIPLES:
            second = round(multiple * first)
            long_enough = first >= task.warmup_steps and second - first >= SHORTEST
            if long_enough and second <= LATEST * task.num_steps:
                pairs.append((first, second))
    return pairs


def variants(task: Task) -> list[Variant]:
    """Our trigger, the rivals, and every point of the grid."""
    rivals = [
        method
        for method in METHODS.values()
        if method.name.startswith("fgo_by_") and method.weights == "raw"
    ]
    told = [
        Variant(
            f"at {first}, {second}",
            STUDIED["fgo_at_steps"],
            {"first": float(first), "second": float(second)},
            part="fixed",
            note=KNOWS_T,
        )
        for first, second in fixed_times(task)
    ]
    return [
        Variant("fgo", METHODS["fgo"], part="trigger"),
        *(Variant(m.name, m, part="trigger", note=m.note) for m in rivals),
        *told,
    ]


def best_fixed(held: Study, level: Level, weights: study.Weights) -> str:
    """The name of the best point of the grid."""
    names = [v.name for v in held.variants.values() if v.part == "fixed"]
    if not names:
        raise ValueError(
            f"no switch times of the grid fit into {held.task.num_steps} steps of "
            f"{held.task.name}: give more --steps."
        )
    trials = [
        {
            "hits": study.hits(held, level, weights, name),
            "finals": study.finals(held, weights, name),
        }
        for name in names
    ]
    return names[evidence.best_trial(trials)]


def table_of(held: Study) -> dict[str, Any]:
    """The figures of a task: at each level and reading the triggers, the grid, its best point."""

    def reading(level: Level, weights: study.Weights) -> dict[str, Any]:
        best = best_fixed(held, level, weights)
        rows = {name: study.row(held, level, weights, name, best) for name in held.variants}
        firsts = [r["setting"]["first"] for r in rows.values() if r["part"] == "fixed"]
        return {
            "best": best,
            "at_edge": rows[best]["setting"]["first"] in (min(firsts), max(firsts)),
            "rows": {n: r for n, r in rows.items() if r["part"] == "trigger"},
            "grid": {n: r for n, r in rows.items() if r["part"] == "fixed"},
        }

    return study.table_of(held, reading)


HEADINGS = ("trigger", "re-ask", "execution", "by trigger", "steps", "regret", "final", "reached")


def cells(table: dict[str, Any], reading: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of one reading as text, under `HEADINGS`."""
    best = {f"best fixed: {reading['best']}": reading["grid"][reading["best"]]}
    for name, row in {**reading["rows"], **best}.items():
        began = [evidence.middle(steps) for steps in row["started"]]
        both = (np.asarray(row["causes"]) == 1).all(axis=0).sum()
        yield (
            f"{name} †" if row["note"] else name,
            *(f"{step:.0f}" if math.isfinite(step) else "never" for step in began),
            f"{both}/{row['runs']}",
            *study.last_cells(table, row),
        )
