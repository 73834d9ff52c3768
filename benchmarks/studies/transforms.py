"""Single transformations against Adam: steps, seconds and memory, task by task."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from benchmarks import statistics
from benchmarks.methods import METHODS, Method
from benchmarks.race.hold import Race
from benchmarks.race.outcome import row
from benchmarks.report.text import restored, setting, spread, tests
from benchmarks.runs.store import environment
from benchmarks.tasks.task import Task
from benchmarks.terminal import table

SEEDS = 3
ROUNDS = 15  # of timing: the ratios of step times are part of the result
HEADINGS = (
    "transform", "rate", "steps to target", "ratio", "seconds", "ratio of seconds", "ms per step",
    "step time / Adam", "state, bytes per parameter", "final validation", "reached",
)  # fmt: skip


def contestants(task: Task) -> list[Method]:
    """One method for each transformation, and Adam."""
    return [m for m in METHODS.values() if m.transform and m.enters(task)]


def bytes_per_parameter(task: Task, tx: optax.GradientTransformation) -> float:
    """Bytes of all leaves of an optimizer's state over the number of parameters."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / size(task)


def size(task: Task) -> int:
    """The number of a task's parameters."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def table_of(race: Race, begun: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one task, at the level that the race puts first.

    They become rows of a finished table, at its target, if one is `begun`.
    """
    level, task, rows = race.levels[0], race.task, {}
    level = dataclasses.replace(level, target=begun.get("target", level.target))
    busy = os.getloadavg()[0] > environment()["cpus"]
    for name, entry in race.entries[level.name].items():
        figures, time, tuned = row(race, level, name), race.times[name], race.tuned["methods"][name]
        seconds = np.asarray(figures["ratio"]["values"]) * time.ratio
        shortly = {key: tuned[key] for key in ("seeds", "trials", "at_edge") if "seeds" in tuned}
        notes = ("one tuning seed" * bool(shortly), "step time on a busy machine" * busy)
        rows[name] = {
            "transform": entry.method.transform,
            **figures, "note": "; ".join(filter(None, notes)), "tuning": shortly,
            "seconds_ratio": statistics.summary(seconds),
            "step_seconds": time.seconds, "step_time_ratio": time.ratio,
            "state_bytes_per_parameter": bytes_per_parameter(
                task, entry.method.build(task, entry.setting)
            ),
        }  # fmt: skip
    if begun:
        later = {n: r | {"environment": environment()} for n, r in rows.items() if n != "constant"}
        return {**begun, "rows": begun["rows"] | later}
    return {
        "metric": task.metric, "data": task.digest, "num_steps": task.num_steps,
        "parameters": size(task), "evidence": race.evidence, "target": level.target,
        "level": level.title, "rows": rows, "environment": environment(),
    }  # fmt: skip


def title(name: str, content: Mapping[str, Any]) -> str:
    text = (
        f"{name}: {content['metric']} {content['target']:.4g} ({content['level']}), "
        f"T = {content['num_steps']}, {content['parameters']} parameters"
    )
    return text if content["evidence"] else f"{text}; a quick look, no evidence"


def cells(content: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of a task as text, under `HEADINGS`."""
    for figures in content["rows"].values():
        yield (
            f"{figures['transform']} ({figures['note']})".removesuffix(" ()"),
            setting(figures["hyperparameters"]),
            spread(figures["steps"], "{:.0f}", beyond=f"> {content['num_steps']}"),
            spread(figures["ratio"], "{:.2f}", beyond="-"),
            spread(figures["seconds"], "{:.3g}", beyond="-"),
            spread(figures["seconds_ratio"], "{:.2f}", beyond="-"),
            f"{1e3 * figures['step_seconds']:.2f}", f"{figures['step_time_ratio']:.2f}",
            f"{figures['state_bytes_per_parameter']:.1f}",
            f"{figures['final']['median']:.4g}", f"{figures['reached']}/{figures['runs']}",
        )  # fmt: skip


def print_tables(tables: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    for name, content in restored(tables).items():
        console.print(table(title(name, content), HEADINGS, cells(content), 2, wrap=True))
        measured = "; ".join(f"{n} {tests(row['test'])}" for n, row in content["rows"].items())
        console.print(f"Test: {measured}", style="dim")
