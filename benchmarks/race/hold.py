"""A race: tuned settings, fresh seeds, the same batches for every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import METHODS, Method
from benchmarks.race.levels import Level, final_of, hit_of, level_from
from benchmarks.runs import timing
from benchmarks.runs.store import run
from benchmarks.runs.training import Curves
from benchmarks.tasks.task import Task

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
        found = [hit_of(self.task, self.method, c, target) for c in self.curves(seeds)]
        return np.asarray(found)

    def finals(self) -> np.ndarray:
        return np.asarray([final_of(self.task, self.method, c) for c in self.curves()])


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
    result = []
    for stored in tuned["levels"].values():
        level = level_from(stored)
        settings = {
            method.name: tuned["methods"][method.name]["chosen"][level.name]
            for method in methods
            if level.has(method)
            and level.name in tuned["methods"].get(method.name, {}).get("chosen", {})
        }
        if all(name in settings for name in level.references.values()):
            result.append((level, settings))
    return result


def num_runs(planned, seeds_of: SeedsOf) -> int:
    """How many runs the race takes; what methods share counts once."""
    return len(
        {
            _run_key(METHODS[name], setting, seed)
            for _, settings in planned
            for name, setting in settings.items()
            for seed in seeds_of(METHODS[name])
        }
    )


def _run_key(method: Method, setting: Mapping[str, float], seed: int) -> tuple:
    """The same for methods that share a run."""
    return (method.trajectory, tuple(sorted(setting.items())), seed)


def hold_race(
    task: Task,
    tuned: Mapping[str, Any],
    methods: Sequence[Method],
    seeds_of: SeedsOf,
    directory: Path,
    *,
    is_evidence: bool,
    rounds: int,
    announce: Callable[[str], None],
    progress: Callable[[int], None],
) -> Race:
    """Runs all methods of `tuned` at their settings and times their steps."""
    done: dict[tuple, Curves] = {}

    def trained(method: Method, setting: Mapping[str, float], seed: int) -> Curves:
        key = _run_key(method, setting, seed)
        if key not in done:
            announce(f"{method.name}, seed {seed}")
            done[key] = run(task, method, setting, seed, directory=directory, progress=progress)
        return done[key]

    def entry(method: Method, setting: Mapping[str, float]) -> Entry:
        runs = {seed: trained(method, setting, seed) for seed in seeds_of(method)}
        return Entry(task, method, setting, runs)

    planned = plan(tuned, methods)
    entries = {
        level.name: {name: entry(METHODS[name], setting) for name, setting in settings.items()}
        for level, settings in planned
    }
    announce("step times")
    levels = [level for level, _ in planned]
    first = entries[levels[0].name].values()
    contestants = {timing.label(e.method): (e.method, e.setting) for e in first}
    times = timing.step_times(task, contestants, rounds=rounds)
    return Race(task, levels, entries, times, is_evidence, tuned)
