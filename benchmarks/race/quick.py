"""Settings for a quick look, which is no evidence: no tuning, a short horizon."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.methods import Method
from benchmarks.race import grids, tuning
from benchmarks.race.levels import ADAM, Level
from benchmarks.tasks.task import Task

SHORTER = 5  # a quick race takes this part of the horizon
# About what a run reaches in a fifth of its length.
_TARGETS = {
    "digits_vit": 1.1, "mnist5k_vit": 0.7, "char_gpt": 2.2, "digits_autoencoder": 35.0,
    "modular_addition": 4.0, "cifar10_vit": 1.3,
}  # fmt: skip


def settings(task: Task, methods: Sequence[Method]) -> dict[str, Any]:
    """The committed settings where there are some, else the middle of each grid."""
    try:
        committed = tuning.load(task)["methods"]
    except FileNotFoundError:
        committed = {}
    entries = {}
    for method in methods:
        grid = grids.grid(task, method)
        chosen = committed.get(method.name, {}).get("chosen", {})
        setting = next(iter(chosen.values()), grid[len(grid) // 2])
        entries[method.name] = {
            "trials": [{"hyperparameters": setting}],
            "chosen": {"quick": setting},
        }
    # A short run may miss a fixed target; the table still compares final values.
    target = task.target if task.target is not None else _TARGETS[task.name]
    level = dataclasses.asdict(Level("quick", "a quick look", target, ADAM))
    return {"data": task.digest, "levels": {"quick": level}, "methods": entries}
