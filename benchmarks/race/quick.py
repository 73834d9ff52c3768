"""Settings for a look at a race that nobody should believe: no tuning, a short horizon."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.methods import Method
from benchmarks.race import grids, tuning
from benchmarks.race.levels import Level
from benchmarks.tasks.task import Task

SHORTER = 5  # a quick race takes this part of the horizon
# About where a fifth of a run leads.
_TARGETS = {
    "digits_vit": 1.1,
    "mnist5k_vit": 0.7,
    "char_gpt": 2.2,
    "digits_autoencoder": 35.0,
    "modular_addition": 4.0,
    "cifar10_vit": 1.3,
}


def settings(task: Task, methods: Sequence[Method]) -> dict[str, Any]:
    """The committed settings where there are some, else the middle of each grid."""
    try:
        committed = tuning.load(task)["methods"]
    except FileNotFoundError:
        committed = {}
    entries = {}
    for method in methods:
        grid = grids.grid(task, method)
        setting = grid[len(grid) // 2]
        for chosen in committed.get(method.name, {}).get("chosen", {}).values():
            setting = chosen
            break
        entries[method.name] = {
            "trials": [{"hyperparameters": setting}],
            "chosen": {"quick": setting},
        }
    # Out of reach of a short run at a fixed level, the table still compares final values.
    level = Level(
        name="quick",
        title="a quick look",
        target=task.target if task.target is not None else _TARGETS[task.name],
        references={"raw": "constant", "averaged": "constant"},
    )
    return {"levels": {"quick": dataclasses.asdict(level)}, "methods": entries}
