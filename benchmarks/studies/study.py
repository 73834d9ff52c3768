"""Variants of the protocol at its own learning rate: their runs, and how long each took."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks import statistics, terminal
from benchmarks.methods import METHODS, Method
from benchmarks.race.hold import Entry
from benchmarks.race.levels import Level
from benchmarks.report.text import known, restored, spread
from benchmarks.runs import transitions
from benchmarks.runs.store import environment, held_in, plain, run, write_json
from benchmarks.tasks.task import Task
from benchmarks.terminal import progress_bar

Weights = Literal["raw", "averaged"]
# Of each run two readings, for whose rates two contestants are tuned.
READINGS: dict[Weights, str] = {"raw": "fgo", "averaged": "fgo_averaged"}
# The same refinement without phases is the reference at these, each reading's by its own weights.
LEVELS = ("claim", "late")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A contestant of a study."""

    name: str
    method: Method
    # What `build` takes besides the learning rate.
    setting: Mapping[str, float] = dataclasses.field(default_factory=dict)
    part: str = ""  # what it varies
    decay: float = 1.0  # the length of its decay over the protocol's own


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that tables and JSON are made from."""

    task: Task
    levels: Sequence[Level]
    rates: Mapping[Weights, float]
    variants: Mapping[str, Variant]
    entries: Mapping[Weights, Mapping[str, Entry]]  # weights -> variant
    references: Mapping[tuple[str, Weights], Entry]  # (level, weights) -> the level's reference
    evidence: bool

    def hits(self, level: Level, weights: Weights, name: str) -> np.ndarray:
        return self.entries[weights][name].hits(level.target)

    def reference_hits(self, level: Level, weights: Weights) -> np.ndarray:
        """Of the level's reference, judged by its own weights."""
        return self.references[level.name, weights].hits(level.target)


class Plan(NamedTuple):
    levels: list[Level]
    rates: dict[Weights, float]
    # (level, weights) -> the reference's setting there
    settings: dict[tuple[str, Weights], Mapping[str, float]]


def plan(task: Task, tuned: Mapping[str, Any]) -> Plan:
    """The claim's levels of a task with their references, and the rates tuned for the first.

    Raises:
      ValueError: where our own contestants or the references are not among the settings.
    """
    levels = [Level(**lv) for name, lv in tuned["levels"].items() if name in (*LEVELS, "quick")]

    def chosen(name: str, level: str) -> Mapping[str, float]:
        settings = tuned["methods"].get(name, {}).get("chosen", {})
        if level not in settings:
            raise ValueError(
                f"{task.name} has no committed rate for {name}: run `python -m benchmarks race "
                f"{task.name} --tune` first, or give --steps for a look."
            )
        return settings[level]

    first = levels[0].name if levels else LEVELS[0]
    rates: dict[Weights, float] = {
        weights: chosen(name, first)["learning_rate"] for weights, name in READINGS.items()
    }
    settings: dict[tuple[str, Weights], Mapping[str, float]] = {
        (level.name, weights): chosen(level.references[weights], level.name)
        for level in levels
        for weights in READINGS
    }
    return Plan(levels, rates, settings)


def hold(
    task: Task, variants: Sequence[Variant], plan: Plan, seeds: Sequence[int], directory: Path, *,
    is_evidence: bool,
) -> Study:  # fmt: skip
    """Runs every variant and reference for both readings, or reads what `directory` has already.

    What a variant does not set it has as the protocol has it for that reading.
    """

    def entry(name: str, method: Method, setting: Mapping[str, float], weights: Weights) -> Entry:
        runs = {}
        for seed in seeds:
            announce(f"{name}, {weights} weights, seed {seed}")
            runs[seed] = run(task, method, setting, seed, directory=directory, progress=progress)
        return Entry(task, method, setting, runs)

    def varied(variant: Variant, weights: Weights) -> Entry:
        decay = {"decay_ratio": variant.decay, "decay_onset": float(weights == "averaged")}
        setting = {"learning_rate": plan.rates[weights], **decay, **variant.setting}
        method = dataclasses.replace(variant.method, weights=weights)
        return entry(variant.name, method, setting, weights)

    total = (len(READINGS) * len(variants) + len(plan.settings)) * len(seeds) * task.num_steps
    with progress_bar(f"study of {task.name}", total) as (announce, progress):
        entries: Any = {w: {v.name: varied(v, w) for v in variants} for w in READINGS}
        names, references = {level.name: level.references for level in plan.levels}, {}
        for (level, weights), setting in plan.settings.items():
            name = names[level][weights]
            references[level, weights] = entry(name, METHODS[name], setting, weights)
    named = {v.name: v for v in variants}
    return Study(task, plan.levels, plan.rates, named, entries, references, is_evidence)


def row(study: Study, level: Level, weights: Weights, name: str, own: np.ndarray) -> dict[str, Any]:
    """All figures of a variant; `excess` is steps / the `own` ones - 1, seed by seed."""
    variant, entry = study.variants[name], study.entries[weights][name]
    steps = entry.hits(level.target)
    excess = statistics.paired_ratios(steps, own, study.task.num_steps) - 1.0
    return {
        "part": variant.part, "decay": variant.decay, "note": variant.method.note,
        "setting": dict(variant.setting),
        "steps": statistics.summary(steps), "excess": statistics.summary(excess),
        "final": statistics.summary(entry.finals()),
        "reached": int(np.isfinite(steps).sum()), "runs": len(steps),
        **transitions.of_runs(entry.curves()),
    }  # fmt: skip


def table_of(study: Study, reading: Callable[[Level, Weights], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a task: what `reading` finds at each level, for raw and averaged weights."""
    return {
        "metric": study.task.metric, "data": study.task.digest, "num_steps": study.task.num_steps,
        "learning_rates": study.rates,
        "seeds": list(next(iter(study.entries["raw"].values())).runs),
        "evidence": study.evidence, "environment": environment(),
        "levels": {
            level.name: {"title": level.title, "target": level.target,
                         **{weights: reading(level, weights) for weights in READINGS}}
            for level in study.levels
        },
    }  # fmt: skip


def alike(table: Mapping[str, Any], plan: Plan, seeds: Sequence[int]) -> bool:
    """Whether runs of a plan belong into a finished table."""
    targets = {name: level["target"] for name, level in table["levels"].items()}
    rates, own = table["learning_rates"], {level.name: level.target for level in plan.levels}
    return (targets, rates, table["seeds"]) == (own, plan.rates, list(seeds))


def with_rows(kind: ModuleType, table: dict[str, Any], study: Study) -> dict[str, Any]:
    """A finished table with rows that were run later, over the steps that its own are over."""
    for level, weights in itertools.product(study.levels, READINGS):
        reading = table["levels"][level.name][weights]
        own = known(kind.base(reading)["steps"]["values"])
        for name in study.variants:
            added = row(study, level, weights, name, own)
            reading["rows"][name] = added | {"environment": environment()}
    return table


def last_cells(table: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    """Steps, excess over the reference, final value and runs that arrived, as text."""
    return (
        spread(row["steps"], "{:.0f}", beyond=f"> {table['num_steps']}"),
        spread(row["excess"], "{:+.0%}", beyond="-"),
        f"{row['final']['median']:.4g}",
        f"{row['reached']}/{row['runs']}",
    )


def merge(path: Path, rule: str, name: str, table: Mapping[str, Any]) -> None:
    """Puts a task's table into a file, beside those of other tasks."""
    write_json(path, plain({"rule": rule, "tasks": {**held_in(path, "tasks"), name: table}}))


def print_tables(kind: ModuleType, tables: Mapping[str, Any], console: Console) -> None:
    """What `triggers` or `ablation` found, task by task."""
    for name, table in restored(tables).items():
        for level in table["levels"].values():
            for weights in READINGS:
                title = (
                    f"{name}: {level['title']} (target {level['target']:.4g}, T = "
                    f"{table['num_steps']}), {weights} weights, rate "
                    f"{table['learning_rates'][weights]:g}"
                )
                reading = level[weights]
                rows = kind.cells(table, reading)
                console.print(terminal.table(title, kind.HEADINGS, rows, left=len(kind.HEADINGS)))
                if hasattr(kind, "caption"):
                    console.print(kind.caption(reading))
        if not table["evidence"]:
            console.print(
                "A look, no evidence: few seeds, a short horizon or other data.", style="bold red"
            )
    console.print(kind.RULE, style="dim")
