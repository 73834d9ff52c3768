"""A race: tuned settings, fresh seeds, the same batches for everybody, and what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import statistics as evidence
from benchmarks.methods import METHODS, Method
from benchmarks.race import grids
from benchmarks.race.levels import ADAM, ALONE, Level, final_of, hit_of, level_from
from benchmarks.runs import timing, transitions
from benchmarks.runs.store import environment, plain, run
from benchmarks.runs.training import Curves
from benchmarks.tasks.task import Task

RATIO = (
    "median over a method's seeds of (steps of the method) / (the reference's own hit with the "
    "same seed), 95 % bootstrap percentile interval of that median; a reference that never hits "
    "counts as T, a method that never hits as infinite"
)
# Beside the first level's: ladders whose denominators are those of the claim.
LADDERS = ("claim", "claim_sqrt")
SeedsOf = Callable[[Method], Sequence[int]]  # the seeds on which a method is raced


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method at the setting chosen for one level, and its runs by seed."""

    method: Method
    setting: Mapping[str, float]
    runs: Mapping[int, Curves]

    def runs_of(self, seeds: Iterable[int] | None) -> list[Curves]:
        """The runs of `seeds`, to be paired with another method's, or all."""
        return [self.runs[seed] for seed in (self.runs if seeds is None else seeds)]


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
    is_evidence: bool = True,
    rounds: int = 7,
    announce: Callable[[str], None] = lambda text: None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Race:
    """Runs all methods of `tuned` at their settings and times their steps."""
    entries: dict[str, dict[str, Entry]] = {}
    done: dict[tuple, Curves] = {}
    planned = plan(tuned, methods)
    for level, settings in planned:
        entries[level.name] = {}
        for name, setting in settings.items():
            method = METHODS[name]
            runs = {}
            for seed in seeds_of(method):
                key = _run_key(method, setting, seed)
                announce(f"{name}, seed {seed}")
                if key not in done:
                    done[key] = run(
                        task, method, setting, seed, directory=directory, progress=progress
                    )
                runs[seed] = done[key]
            entries[level.name][name] = Entry(method, setting, runs)
    announce("step times")
    first = entries[planned[0][0].name]
    contestants = {
        timing.label(entry.method): (entry.method, entry.setting) for entry in first.values()
    }
    times = timing.step_times(task, contestants, rounds=rounds)
    return Race(task, [level for level, _ in planned], entries, times, is_evidence, tuned)


def hits(
    race: Race,
    level: Level,
    name: str,
    target: float | None = None,
    seeds: Iterable[int] | None = None,
) -> np.ndarray:
    """Of every run of a method, or of those of `seeds`."""
    entry = race.entries[level.name][name]
    target = level.target if target is None else target
    return np.asarray([hit_of(race.task, entry.method, c, target) for c in entry.runs_of(seeds)])


def seconds_to(
    race: Race, level: Level, name: str, steps: np.ndarray, seeds: Iterable[int] | None = None
) -> np.ndarray:
    """Seconds of each seed's first `steps` steps at the setting of `level`."""
    entry = race.entries[level.name][name]
    label = timing.label(entry.method)
    return np.asarray(
        [
            timing.seconds_to(h, c.steps, c.telemetry.get("phase"), race.times, label)
            for h, c in zip(steps, entry.runs_of(seeds), strict=True)
        ]
    )


def _own_seconds(race: Race, level: Level, name: str, seeds: Iterable[int]) -> np.ndarray:
    """The denominators of ratios of seconds: whoever never hits counts as T steps."""
    steps = np.minimum(hits(race, level, name, seeds=seeds), race.task.num_steps)
    return seconds_to(race, level, name, steps, seeds)


def row(race: Race, level: Level, name: str) -> dict[str, Any]:
    """All figures of a method at a level."""
    entry = race.entries[level.name][name]
    method, curves = entry.method, list(entry.runs.values())
    steps = hits(race, level, name)
    own = hits(race, level, level.reference(method), seeds=entry.runs)
    ratios = evidence.paired_ratios(steps, own, race.task.num_steps)
    seconds = seconds_to(race, level, name, steps)
    tests = [c.test[method.weights] for c in curves]
    return {
        "hyperparameters": entry.setting,
        "weights": method.weights,
        "note": method.note,
        "steps": evidence.summary(steps),
        "reference": level.reference(method),
        "own_hits": own,
        "ratio": evidence.summary(ratios),
        "seconds": evidence.summary(seconds),
        "seconds_ratios": {
            rival: evidence.summary(seconds / _own_seconds(race, level, rival, entry.runs))
            for rival in dict.fromkeys((ADAM[method.weights], ALONE[method.weights]))
            if rival in race.entries[level.name]
        },
        "area": evidence.summary([evidence.area(getattr(c, method.weights)) for c in curves]),
        "final": evidence.summary([final_of(race.task, method, c) for c in curves]),
        "test": {key: evidence.summary([t[key] for t in tests]) for key in tests[0]},
        "reached": int(np.isfinite(steps).sum()),
        "runs": len(curves),
        "seeds": list(entry.runs),
        **(transitions.of_runs(curves) if method.phased else {}),
    }


def ladder(race: Race, level: Level) -> dict[str, Any]:
    """Ratios at a row of targets, so that no single level decides; settings of `level`."""
    reference = level.references["raw"]
    runs = race.entries[level.name][reference].runs.values()
    lowest = min(lv.target for lv in race.levels)
    rungs = evidence.ladder([c.raw for c in runs], race.task.smoothing, lowest)

    def ratios(name):
        own, seeds = level.reference(METHODS[name]), race.entries[level.name][name].runs
        pairs = (
            (hits(race, level, name, rung), hits(race, level, own, rung, seeds)) for rung in rungs
        )
        return [
            evidence.middle(evidence.paired_ratios(steps, own_hits, race.task.num_steps))
            for steps, own_hits in pairs
        ]

    return {
        "reference": reference,
        "references": level.references,
        "targets": rungs,
        "ratios": {name: ratios(name) for name in race.entries[level.name]},
    }


def results(race: Race) -> dict[str, Any]:
    """The race as JSON."""
    return plain(
        {
            "task": race.task.name,
            "metric": race.task.metric,
            "data": race.task.digest,
            "evidence": race.evidence,
            "num_steps": race.task.num_steps,
            "eval_every": race.task.eval_every,
            "smoothing": race.task.smoothing,
            "hold": race.task.hold,
            "tuning_seeds": list(grids.tuning_seeds(race.task)),
            "target_seeds": list(grids.TARGET_SEEDS),
            "ratio": RATIO,
            "levels": {
                level.name: {
                    **dataclasses.asdict(level),
                    "methods": {n: row(race, level, n) for n in race.entries[level.name]},
                }
                for level in race.levels
            },
            "ladder": ladder(race, race.levels[0]),
            "ladders": {lv.name: ladder(race, lv) for lv in race.levels if lv.name in LADDERS},
            "step_times": {
                name: {"seconds": t.seconds, "ratio_to_constant": t.ratio}
                for name, t in race.times.items()
            },
            "grids": {
                name: [trial["hyperparameters"] for trial in entry["trials"]]
                for name, entry in race.tuned["methods"].items()
            },
            "at_edge": {
                name: [level for level, edge in entry.get("at_edge", {}).items() if edge]
                for name, entry in race.tuned["methods"].items()
            },
            "environment": environment(),
        }
    )
