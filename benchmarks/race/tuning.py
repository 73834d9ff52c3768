"""Choosing each method's setting: declared grids, equal budgets, seeds that never race."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import statistics
from benchmarks.methods import METHODS, Method
from benchmarks.race import grids
from benchmarks.race.hold import Entry
from benchmarks.race.levels import ADAM, Level, make_levels, num_targets
from benchmarks.runs import timing
from benchmarks.runs.store import environment, plain, run, write_json
from benchmarks.tasks.task import Task
from benchmarks.terminal import console, progress_bar

RESULTS = Path(__file__).parent.parent / "results" / "tuned"
SHORTER = 5  # a quick race, which is no evidence, takes this part of the horizon
# About what a run reaches in a fifth of its length.
_TARGETS = {
    "digits_vit": 1.1, "mnist5k_vit": 0.7, "char_gpt": 2.2, "digits_autoencoder": 35.0,
    "modular_addition": 4.0, "cifar10_vit": 1.3,
}  # fmt: skip

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


def load(task: Task) -> dict[str, Any]:
    """The committed settings; raises a FileNotFoundError where there are none."""
    if not tuned_path(task).exists():
        raise FileNotFoundError(
            f"{task.name} has no committed settings: run `python -m benchmarks race "
            f"{task.name} --tune` first, or --quick for a look."
        )
    return json.loads(tuned_path(task).read_text())


def is_evidence(task: Task, tuned: Mapping[str, Any], *, is_whole: bool, all_seeds: bool) -> bool:
    """Whether runs at these settings count: whole ones, on all seeds, on the settings' own data."""
    same_data = tuned.get("data") == task.digest
    if not same_data:
        console.print(
            f"Settings and targets of {task.name} are of other data ({tuned.get('data')}; "
            f"here {task.digest}): tune anew for evidence.",
            style="yellow",
        )
    return is_whole and all_seeds and same_data


def tune(task: Task, methods: Sequence[Method], directory: Path) -> dict[str, Any]:
    """Runs every trial that is not yet in `directory`, chooses, and writes the settings down.

    Unless the task has a fixed target, `methods` must hold `constant`, from which it comes.
    """
    # One method for each set of runs.
    contestants = {method.trajectory: method for method in reversed(methods)}
    count, seeds = grids.num_trials(task), grids.tuning_seeds(task)

    def on(seeds, name, index):
        announce(f"tuning {name} {index + 1}/{count}")
        method = contestants[name]
        setting = grids.grid(task, method)[index]
        return [
            run(task, method, setting, s, directory=directory, progress=progress) for s in seeds
        ]

    targets = num_targets(task, contestants) * len(grids.TARGET_SEEDS)
    total = (len(contestants) * count * len(seeds) + targets) * task.num_steps
    trials = dict.fromkeys(contestants, count * len(seeds))
    console.print(f"Tuning: {timing.announced(task, trials)}")
    with progress_bar("tuning", total) as (announce, progress):
        runs = {name: [on(seeds, name, index) for index in range(count)] for name in contestants}
        fresh = make_levels(task, runs, lambda name, index: on(grids.TARGET_SEEDS, name, index))
    levels, kept = _with_committed(task, fresh)
    entries = kept | {
        method.name: _choose(task, method, runs[method.trajectory], levels) for method in methods
    }
    tuned = plain({
        "task": task.name, "num_steps": task.num_steps, "rule": RULE, "data": task.digest,
        "seeds": list(seeds), "target_seeds": list(grids.TARGET_SEEDS),
        "levels": {level.name: level for level in levels},
        "methods": {name: entries[name] for name in METHODS if name in entries},
        "environment": environment(),
    })  # fmt: skip
    write_json(tuned_path(task), tuned)
    return tuned


def _with_committed(task: Task, levels: list[Level]):
    """Adds the committed levels and entries of methods that are not tuned this time.

    Only where the targets agree: their settings were chosen for those.
    """
    old = load(task) if tuned_path(task).exists() else None
    if old is None or old["num_steps"] != task.num_steps or old.get("data") != task.digest:
        return levels, {}
    targets = {level.name: level.target for level in levels}
    if any(old["levels"].get(name, {}).get("target", t) != t for name, t in targets.items()):
        return levels, {}
    more = [Level(**lv) for name, lv in old["levels"].items() if name not in targets]
    return levels + more, old["methods"]


def tuned_shortly(task: Task, method: Method, tuned: Mapping[str, Any], directory: Path) -> Any:
    """The setting of a method for the first level, chosen on one tuning seed.

    It tries the refinement's rate for the claim and its neighbours in the grid, and further ones
    while the best lies at an end.
    """
    own = tuned["methods"]["natural_gradient"]["chosen"]["claim"]
    level = Level(**next(iter(tuned["levels"].values())))
    grid, seed = grids.grid(task, method), grids.tuning_seeds(task)[0]
    tried = {grids.grid(task, METHODS["natural_gradient"]).index(own)}
    while True:
        trials = [grid[index] for index in sorted(tried)]
        runs = [[run(task, method, setting, seed, directory=directory)] for setting in trials]
        entry = _choose(task, method, runs, [level], trials)
        best = grid.index(entry["chosen"][level.name])
        near = {best - 1, best, best + 1} & set(range(len(grid)))
        if near <= tried:
            return {**entry, "seeds": [seed]}
        tried |= near


def _choose(task: Task, method: Method, runs, levels: Sequence[Level], grid=None) -> dict[str, Any]:
    grid = grid or grids.grid(task, method)
    entries = [
        Entry(task, method, setting, dict(enumerate(curves)))
        for setting, curves in zip(grid, runs, strict=True)
    ]
    trials = [
        {"hyperparameters": entry.setting, "finals": entry.finals(),
         "hits": {level.name: entry.hits(level.target) for level in levels}}
        for entry in entries
    ]  # fmt: skip

    def best(level: str) -> dict[str, float]:
        counted = [{**trial, "hits": trial["hits"][level]} for trial in trials]
        return grid[statistics.best_trial(counted)]

    chosen = {level.name: best(level.name) for level in levels if level.has(method)}
    return {
        "note": method.note, "weights": method.weights, "trials": trials, "chosen": chosen,
        "at_edge": {level: grids.at_edge(grid, setting) for level, setting in chosen.items()},
    }  # fmt: skip


def quick_settings(task: Task, methods: Sequence[Method]) -> dict[str, Any]:
    """For a quick look: the committed ones where there are some, else the middle of each grid."""
    try:
        committed = load(task)["methods"]
    except FileNotFoundError:
        committed = {}
    entries = {}
    for method in methods:
        grid = grids.grid(task, method)
        chosen = committed.get(method.name, {}).get("chosen", {})
        setting = next(iter(chosen.values()), grid[len(grid) // 2])
        trials = [{"hyperparameters": setting}]
        entries[method.name] = {"trials": trials, "chosen": {"quick": setting}}
    # A short run may miss a fixed target; the table still compares final values.
    target = task.target if task.target is not None else _TARGETS[task.name]
    level = dataclasses.asdict(Level("quick", "a quick look", target, ADAM))
    return {"data": task.digest, "levels": {"quick": level}, "methods": entries}
