"""Single transformations against Adam: steps, seconds and memory, task by task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from benchmarks import statistics as evidence
from benchmarks.methods import METHODS, Method, available
from benchmarks.methods.method import TRANSFORM_TASKS
from benchmarks.race import hold as racing
from benchmarks.race.hold import Race
from benchmarks.report.text import spread, tests
from benchmarks.runs.store import environment, plain
from benchmarks.tasks.task import Task

TASKS = TRANSFORM_TASKS
SEEDS = 3
ROUNDS = 15  # of timing: the ratios of step times are part of the result
HEADINGS = (
    "transform",
    "rate",
    "steps to target",
    "ratio",
    "seconds",
    "ratio of seconds",
    "ms per step",
    "step time / Adam",
    "state, bytes per parameter",
    "final validation",
    "reached",
)


def contestants(task: Task) -> list[Method]:
    """One method for each transformation, and Adam."""
    return [m for m in METHODS.values() if m.transform and m.enters(task) and available(m)]


def bytes_per_parameter(task: Task, tx: optax.GradientTransformation) -> float:
    """Bytes of all leaves of an optimizer's state over the number of parameters."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return held / optax.tree.size(params)


def table_of(race: Race) -> dict[str, Any]:
    """The figures of one task, at the level that the race puts first."""
    level = race.levels[0]
    rows = {}
    for name, entry in race.entries[level.name].items():
        row, method = racing.row(race, level, name), entry.method
        time = race.times[name]
        step_ratios = row["ratio"]["values"]
        rows[name] = {
            "transform": method.transform,
            **row,
            "seconds_ratio": evidence.summary(np.asarray(step_ratios) * time.ratio),
            "step_seconds": time.seconds,
            "step_time_ratio": time.ratio,
            "state_bytes_per_parameter": bytes_per_parameter(
                race.task, method.build(race.task, entry.setting)
            ),
        }
    return {
        "metric": race.task.metric,
        "data": race.task.digest,
        "num_steps": race.task.num_steps,
        "parameters": _size(race.task),
        "evidence": race.evidence,
        "target": level.target,
        "level": level.title,
        "rows": rows,
        "environment": environment(),
    }


def results(races: Sequence[Race]) -> dict[str, Any]:
    """All tasks, as JSON."""
    return plain(
        {
            "ratio": racing.RATIO,
            "tasks": {race.task.name: table_of(race) for race in races},
        }
    )


def title(name: str, table: Mapping[str, Any]) -> str:
    text = (
        f"{name}: {table['metric']} {table['target']:.4g} ({table['level']}), "
        f"T = {table['num_steps']}, {table['parameters']} parameters"
    )
    return text if table["evidence"] else f"{text}; a quick look, no evidence"


def cells(table: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of a table as text, under `HEADINGS`."""
    for row in table["rows"].values():
        yield (
            row["transform"],
            " ".join(f"{v:g}" for v in row["hyperparameters"].values()),
            spread(row["steps"], "{:.0f}", beyond=f"> {table['num_steps']}"),
            spread(row["ratio"], "{:.2f}", beyond="-"),
            spread(row["seconds"], "{:.3g}", beyond="-"),
            spread(row["seconds_ratio"], "{:.2f}", beyond="-"),
            f"{1e3 * row['step_seconds']:.2f}",
            f"{row['step_time_ratio']:.2f}",
            f"{row['state_bytes_per_parameter']:.1f}",
            f"{row['final']['median']:.4g}",
            f"{row['reached']}/{row['runs']}",
        )


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, table in tables.items():
        lines = [HEADINGS, ("---",) * len(HEADINGS), *cells(table)]
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"{title(name, table)}\n\n{rows}\n")
    return "\n".join(parts)


def print_tables(tables: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    for name, content in tables.items():
        table = Table(title=title(name, content), title_justify="left", header_style="bold")
        for index, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="right" if index > 1 else "left")
        for row in cells(content):
            table.add_row(*row)
        console.print(table)
        console.print(
            "Test: " + "; ".join(f"{n} {tests(row['test'])}" for n, row in content["rows"].items()),
            style="dim",
        )


def _size(task: Task) -> int:
    return int(optax.tree.size(jax.eval_shape(task.init, jax.random.key(0))))
