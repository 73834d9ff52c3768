"""A race: tuned settings, fresh seeds, the same batches for every method."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import statistics
from benchmarks.methods import METHODS, Method
from benchmarks.race.levels import Level
from benchmarks.runs import timing
from benchmarks.runs.store import run
from benchmarks.runs.training import Curves
from benchmarks.tasks.task import Task
from benchmarks.terminal import console, progress_bar

SeedsOf = Callable[[Method], Sequence[int]]  # the seeds on which a method is raced


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method at one setting, and its runs by seed."""

    task: Task
    method: Method
    setting: Mapping[str, float]
    runs: Mapping[int, Curves]

    def curves(self, seeds: Iterable[int] | None = None) -> list[Curves]:
        """The runs of `seeds`, to be paired with another method's, or all."""
        return [self.runs[seed] for seed in (self.runs if seeds is None else seeds)]

    def hits(self, target: float, seeds: Iterable[int] | None = None) -> np.ndarray:
        """Steps to `target`, run by run; inf where it is missed."""
        task, weights = self.task, self.method.weights

        def hit(curves: Curves) -> float:
            values = statistics.smooth(getattr(curves, weights), task.smoothing)
            kept = {"hold": task.hold, "num_steps": task.num_steps}
            return statistics.hit(curves.steps, values, target, **kept)

        return np.asarray([hit(curves) for curves in self.curves(seeds)])

    def finals(self) -> np.ndarray:
        """The smoothed metric at the end of each run."""
        ends = [getattr(curves, self.method.weights) for curves in self.curves()]
        return np.asarray([statistics.end_value(v, self.task.smoothing) for v in ends])


@dataclasses.dataclass(frozen=True)
class Race:
    """Everything that tables, pictures and JSON are made from."""

    task: Task
    levels: Sequence[Level]
    entries: Mapping[str, Mapping[str, Entry]]  # level -> method -> entry
    times: Mapping[str, timing.StepTime]
    evidence: bool
    tuned: Mapping[str, Any]


def plan(tuned: Mapping[str, Any], methods: Sequence[Method]):
    """(level, {method: setting}) for each level: what the race will run."""
    chosen = {name: entry.get("chosen", {}) for name, entry in tuned["methods"].items()}
    result = []
    for level in (Level(**stored) for stored in tuned["levels"].values()):
        settings = {
            method.name: chosen[method.name][level.name]
            for method in methods
            if level.has(method) and level.name in chosen.get(method.name, {})
        }
        if set(level.references.values()) <= set(settings):
            result.append((level, settings))
    return result


def hold_race(
    task: Task, tuned: Mapping[str, Any], methods: Sequence[Method], seeds_of: SeedsOf,
    directory: Path, *, is_evidence: bool, rounds: int,
) -> Race:  # fmt: skip
    """Runs all methods of `tuned` at their settings and times their steps."""
    planned = plan(tuned, methods)
    levels, done, entries = [level for level, _ in planned], {}, {}

    def trained(method: Method, setting: Mapping[str, float], seed: int) -> Curves:
        # Methods that are read from the same curves share a run.
        key = (method.trajectory, tuple(sorted(setting.items())), seed)
        if key in done:
            progress(task.num_steps)
        else:
            announce(f"{method.name}, seed {seed}")
            done[key] = run(task, method, setting, seed, directory=directory, progress=progress)
        return done[key]

    asked = [
        (METHODS[name], setting, seed)
        for _, settings in planned
        for name, setting in settings.items()
        for seed in seeds_of(METHODS[name])
    ]
    runs = {(method.trajectory, *sorted(setting.items()), seed) for method, setting, seed in asked}
    console.print(timing.announced(task, Counter(trajectory for trajectory, *_ in runs)))
    with progress_bar(f"race {task.name}", len(asked) * task.num_steps) as (announce, progress):
        for level, settings in planned:
            entries[level.name] = {}
            for name, setting in settings.items():
                method = METHODS[name]
                kept = {seed: trained(method, setting, seed) for seed in seeds_of(method)}
                entries[level.name][name] = Entry(task, method, setting, kept)
        announce("step times")
        first = entries[levels[0].name].values()
        contestants = {timing.label(e.method): (e.method, e.setting) for e in first}
        times = timing.step_times(task, contestants, rounds=rounds)
    return Race(task, levels, entries, times, is_evidence, tuned)
