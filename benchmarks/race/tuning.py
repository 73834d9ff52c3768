"""Choosing each method's setting: declared grids, equal budgets, seeds that never race."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import statistics as evidence
from benchmarks.methods import METHODS, Method
from benchmarks.race import grids
from benchmarks.race.levels import Level, final_of, hit_of, level_from, make_levels, num_targets
from benchmarks.runs.store import code_fingerprint, environment, plain, run, write_json
from benchmarks.tasks.task import Task

RESULTS = Path(__file__).parent.parent / "results" / "tuned"

RULE = (
    "Target of a level: what the best setting of its source ends with, run again on the target "
    "seeds, the median there. Best: the lowest median over the tuning seeds. Ends with: for a "
    "constant rate (constant, claim by raw weights, late by averaged ones) the mean over the last "
    "eighth of a run, or its maximum where a hit must last to the end; for a schedule that knows T "
    "(cosine, horizon) the smoothed value at T. A task's fixed target takes the place of constant "
    "and claim. Chosen for a level: fewest median steps to it over tuning seeds, ties by the final "
    "value. The reference of the ratios is chosen by the same rule."
)


def tuned_path(task: Task) -> Path:
    return RESULTS / f"{task.name}.json"


def trajectories(methods: Sequence[Method]) -> dict[str, Method]:
    """One method for each set of runs."""
    return {method.trajectory: method for method in reversed(methods)}


def num_runs(task: Task, methods: Sequence[Method]) -> int:
    names = trajectories(methods)
    trials = len(names) * grids.num_trials(task) * len(grids.tuning_seeds(task))
    return trials + num_targets(task, names) * len(grids.TARGET_SEEDS)


def tune(
    task: Task,
    methods: Sequence[Method],
    directory: Path,
    *,
    announce: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Runs every trial that is not yet in `directory` and chooses.

    `methods` must hold `constant`, from which the first target comes, unless the task has a
    fixed one.
    """
    methods = [method for method in methods if method.enters(task)]
    runs = {}
    contestants = trajectories(methods)

    def on(seeds, method, setting):
        return [
            run(task, method, setting, seed, directory=directory, progress=progress)
            for seed in seeds
        ]

    def repeat(name, index):
        announce(f"target of {name}")
        method = contestants[name]
        return on(grids.TARGET_SEEDS, method, grids.grid(task, method)[index])

    for name, method in contestants.items():
        runs[name] = []
        for number, setting in enumerate(grids.grid(task, method), 1):
            announce(f"tuning {name} {number}/{grids.num_trials(task)}")
            runs[name].append(on(grids.tuning_seeds(task), method, setting))
    levels, kept = _with_committed(task, make_levels(task, runs, repeat))
    entries = kept | {
        method.name: _choose(task, method, runs[method.trajectory], levels) for method in methods
    }
    return plain(
        {
            "task": task.name,
            "num_steps": task.num_steps,
            "rule": RULE,
            "data": task.digest,
            "seeds": list(grids.tuning_seeds(task)),
            "target_seeds": list(grids.TARGET_SEEDS),
            "levels": {level.name: dataclasses.asdict(level) for level in levels},
            "methods": {name: entries[name] for name in METHODS if name in entries},
            "environment": environment(),
        }
    )


def _with_committed(task: Task, levels: list[Level]):
    """Adds the committed levels and entries of methods that are not tuned this time.

    Only where the targets agree: their settings were chosen for those.
    """
    path = tuned_path(task)
    old = json.loads(path.read_text()) if path.exists() else None
    if old is None or old["num_steps"] != task.num_steps or old.get("data") != task.digest:
        return levels, {}
    targets = {level.name: level.target for level in levels}
    if any(old["levels"].get(name, {}).get("target", t) != t for name, t in targets.items()):
        return levels, {}
    more = [level_from(lv) for name, lv in old["levels"].items() if name not in targets]
    return levels + more, old["methods"]


def _choose(task: Task, method: Method, runs, levels: Sequence[Level]) -> dict[str, Any]:
    grid = grids.grid(task, method)
    entry = {
        "note": method.note,
        "weights": method.weights,
        "code": code_fingerprint(task, method),
        "trials": [
            {
                "hyperparameters": setting,
                "final_levels": [evidence.final_level(getattr(c, method.weights)) for c in curves],
                "finals": [final_of(task, method, c) for c in curves],
                "hits": {
                    lv.name: [hit_of(task, method, c, lv.target) for c in curves] for lv in levels
                },
            }
            for setting, curves in zip(grid, runs, strict=True)
        ],
        "chosen": {},
        "at_edge": {},
    }
    for level in levels:
        if not level.has(method):
            continue
        trials = [{**trial, "hits": trial["hits"][level.name]} for trial in entry["trials"]]
        chosen = grid[evidence.best_trial(trials)]
        entry["chosen"][level.name] = chosen
        entry["at_edge"][level.name] = grids.at_edge(grid, chosen)
    return entry


def save(task: Task, tuned: dict[str, Any]) -> None:
    write_json(tuned_path(task), tuned)


def load(task: Task) -> dict[str, Any]:
    path = tuned_path(task)
    if not path.exists():
        raise FileNotFoundError(
            f"{task.name} has no committed settings: run `python -m benchmarks race "
            f"{task.name} --tune` first, or --quick for a look."
        )
    return json.loads(path.read_text())
