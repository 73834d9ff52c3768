"""Variants of the protocol at its own learning rate: their runs, and how long each took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import statistics as evidence
from benchmarks.methods import METHODS, Method
from benchmarks.race import quick, tuning
from benchmarks.race.levels import Level, final_of, hit_of, level_from
from benchmarks.report.text import spread
from benchmarks.runs import transitions
from benchmarks.runs.store import environment, held_in, plain, run, write_json
from benchmarks.runs.training import Curves
from benchmarks.tasks.task import Task
from fgo_jax.protocol import default_decay_onset

Weights = Literal["raw", "averaged"]
# Of each run two readings, for whose rates two contestants are tuned.
READINGS: dict[Weights, str] = {"raw": "fgo", "averaged": "fgo_averaged"}
# The same refinement without phases is the reference at these, each reading's by its own weights.
LEVELS = ("claim", "late")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A contestant of a study.

    Attributes:
      name: in tables.
      method: how it is built.
      setting: what `build` takes besides the learning rate.
      part: what it varies.
      note: what a reader of the table must know.
      decay: the length of its decay over the protocol's own.
    """

    name: str
    method: Method
    setting: Mapping[str, float] = dataclasses.field(default_factory=dict)
    part: str = ""
    note: str = ""
    decay: float = 1.0


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that tables and JSON are made from."""

    task: Task
    levels: Sequence[Level]
    rates: Mapping[Weights, float]
    variants: Mapping[str, Variant]
    # weights -> variant -> seed -> curves
    runs: Mapping[Weights, Mapping[str, Mapping[int, Curves]]]
    # (level, weights) -> seed -> curves of the level's reference
    references: Mapping[tuple[str, Weights], Mapping[int, Curves]]
    evidence: bool


def setting_of(variant: Variant, weights: Weights, rate: float) -> dict[str, float]:
    """What a variant is built with for a reading, whose own onset of the decay it has."""
    return {
        "learning_rate": rate,
        "decay_ratio": variant.decay,
        "decay_onset": default_decay_onset(averaged=weights == "averaged"),
        **variant.setting,
    }


class Plan(NamedTuple):
    levels: list[Level]
    rates: dict[Weights, float]
    # (level, weights) -> the reference's setting there
    settings: dict[tuple[str, Weights], Mapping[str, float]]
    same_data: bool  # the settings are of the data that this machine has


def plan(task: Task, is_evidence: bool) -> Plan:
    """The claim's levels of a task with their references, and the rates tuned for the first.

    Raises:
      FileNotFoundError: where the task has no committed settings.
      ValueError: where our own contestants or the references are not among them.
    """
    ours = [METHODS[name] for name in READINGS.values()]
    if is_evidence:
        tuned = tuning.load(task)
        stored = [tuned["levels"][name] for name in LEVELS if name in tuned["levels"]]
    else:
        tuned = quick.settings(task, [METHODS["constant"], *ours])
        stored = list(tuned["levels"].values())
    levels = [level_from(level) for level in stored]

    def chosen(name: str, level: str) -> Mapping[str, float]:
        settings = tuned["methods"].get(name, {}).get("chosen", {})
        if level not in settings:
            raise ValueError(
                f"{task.name} has no committed rate for {name}: run `python -m benchmarks race "
                f"{task.name} --tune` first, or give --steps for a look."
            )
        return settings[level]

    first = levels[0].name if levels else LEVELS[0]
    rates: dict[Weights, float] = {}
    settings: dict[tuple[str, Weights], Mapping[str, float]] = {}
    for weights in READINGS:
        rates[weights] = chosen(READINGS[weights], first)["learning_rate"]
        for level in levels:
            settings[level.name, weights] = chosen(level.references[weights], level.name)
    same_data = tuned.get("data", task.digest) == task.digest
    return Plan(levels, rates, settings, same_data)


def hold(
    task: Task,
    variants: Sequence[Variant],
    plan: Plan,
    seeds: Sequence[int],
    directory: Path,
    *,
    is_evidence: bool = True,
    announce: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Study:
    """Runs every variant and reference for both readings, or reads what `directory` has already.

    What a variant does not set it has as the protocol has it for that reading.
    """

    def trained(
        name: str, method: Method, setting: Mapping[str, float], weights: Weights
    ) -> dict[int, Curves]:
        curves = {}
        for seed in seeds:
            announce(f"{name}, {weights} weights, seed {seed}")
            curves[seed] = run(task, method, setting, seed, directory=directory, progress=progress)
        return curves

    def varied(variant: Variant, weights: Weights) -> dict[int, Curves]:
        setting = setting_of(variant, weights, plan.rates[weights])
        return trained(variant.name, variant.method, setting, weights)

    runs: dict[Weights, Any] = {w: {v.name: varied(v, w) for v in variants} for w in READINGS}
    references: dict[tuple[str, Weights], dict[int, Curves]] = {}
    for level in plan.levels:
        for weights in READINGS:
            name, setting = level.references[weights], plan.settings[level.name, weights]
            found = trained(name, METHODS[name], setting, weights)
            references[level.name, weights] = found
    named = {v.name: v for v in variants}
    return Study(task, plan.levels, plan.rates, named, runs, references, is_evidence)


def num_runs(plan: Plan, variants: Sequence[Variant], seeds: Sequence[int]) -> int:
    """How many runs `hold` announces."""
    return (len(READINGS) * len(variants) + len(plan.settings)) * len(seeds)


def hits(study: Study, level: Level, weights: Weights, name: str) -> np.ndarray:
    method = dataclasses.replace(study.variants[name].method, weights=weights)
    runs = study.runs[weights][name].values()
    return np.asarray([hit_of(study.task, method, curves, level.target) for curves in runs])


def reference_hits(study: Study, level: Level, weights: Weights) -> np.ndarray:
    """Of the level's reference, judged by its own weights."""
    method = METHODS[level.references[weights]]
    runs = study.references[level.name, weights].values()
    return np.asarray([hit_of(study.task, method, curves, level.target) for curves in runs])


def finals(study: Study, weights: Weights, name: str) -> np.ndarray:
    method = dataclasses.replace(study.variants[name].method, weights=weights)
    runs = study.runs[weights][name].values()
    return np.asarray([final_of(study.task, method, curves) for curves in runs])


def row(study: Study, level: Level, weights: Weights, name: str, reference: str) -> dict[str, Any]:
    """All figures of a variant; `excess` is steps / the reference's steps - 1, seed by seed."""
    variant, steps = study.variants[name], hits(study, level, weights, name)
    own = hits(study, level, weights, reference)
    excess = evidence.paired_ratios(steps, own, study.task.num_steps) - 1.0
    return {
        "part": variant.part,
        "decay": variant.decay,
        "note": variant.note or variant.method.note,
        "setting": dict(variant.setting),
        "steps": evidence.summary(steps),
        "excess": evidence.summary(excess),
        "final": evidence.summary(finals(study, weights, name)),
        "reached": int(np.isfinite(steps).sum()),
        "runs": len(steps),
        **transitions.of_runs(study.runs[weights][name].values()),
    }


def table_of(study: Study, reading: Callable[[Level, Weights], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a task: what `reading` finds at each level, for raw and averaged weights."""
    task = study.task
    levels = {
        level.name: {
            "title": level.title,
            "target": level.target,
            **{weights: reading(level, weights) for weights in READINGS},
        }
        for level in study.levels
    }
    return {
        "metric": task.metric,
        "data": task.digest,
        "num_steps": task.num_steps,
        "learning_rates": study.rates,
        "seeds": list(next(iter(study.runs["raw"].values()))),
        "evidence": study.evidence,
        "environment": environment(),
        "levels": levels,
    }


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
    for name, table in tables.items():
        for level in table["levels"].values():
            for weights in READINGS:
                rate = table["learning_rates"][weights]
                title = (
                    f"{name}: {level['title']} (target {level['target']:.4g}, T = "
                    f"{table['num_steps']}), {weights} weights, rate {rate:g}"
                )
                shown = Table(title=title, title_justify="left", header_style="bold")
                for heading in kind.HEADINGS:
                    shown.add_column(heading, no_wrap=True)
                for row in kind.cells(table, level[weights]):
                    shown.add_row(*row)
                console.print(shown)
                if said := kind.caption(level[weights]):
                    console.print(said)
        if not table["evidence"]:
            console.print(
                "A look, no evidence: few seeds, a short horizon or other data.", style="bold red"
            )
    console.print(kind.RULE, style="dim")
