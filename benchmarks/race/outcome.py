"""What came out of a race, as JSON."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import statistics
from benchmarks.methods import METHODS
from benchmarks.race import grids
from benchmarks.race.hold import Entry, Race
from benchmarks.race.levels import ADAM, ALONE, Level
from benchmarks.runs import timing, transitions
from benchmarks.runs.store import environment, plain

RATIO = (
    "median over a method's seeds of (steps of the method) / (the reference's own hit with the "
    "same seed), 95 % bootstrap percentile interval of that median; a reference that never hits "
    "counts as T, a method that never hits as infinite"
)
# Beside the first level's: ladders whose denominators are those of the claim.
LADDERS = ("claim", "claim_sqrt")


def seconds(
    race: Race, entry: Entry, steps: np.ndarray, seeds: Iterable[int] | None = None
) -> np.ndarray:
    """Seconds of the first `steps` steps of each run."""
    label = timing.label(entry.method)
    return np.asarray([
        timing.seconds_to(h, c.steps, c.telemetry.get("phase"), race.times, label)
        for h, c in zip(steps, entry.curves(seeds), strict=True)
    ])  # fmt: skip


def row(race: Race, level: Level, name: str) -> dict[str, Any]:
    """All figures of a method at a level."""
    entries, horizon = race.entries[level.name], race.task.num_steps
    entry, reference = entries[name], level.reference(entries[name].method)
    method, curves, seeds = entry.method, entry.curves(), list(entry.runs)
    steps, own = entry.hits(level.target), entries[reference].hits(level.target, seeds)
    taken = seconds(race, entry, steps)

    def seconds_ratios(rival: Entry) -> np.ndarray:
        # Whoever never hits counts as T steps.
        steps = np.minimum(rival.hits(level.target, seeds), horizon)
        return taken / seconds(race, rival, steps, seeds)

    tests = [c.test[method.weights] for c in curves]
    return {
        "hyperparameters": entry.setting, "weights": method.weights, "note": method.note,
        "steps": statistics.summary(steps), "reference": reference, "own_hits": own,
        "ratio": statistics.summary(statistics.paired_ratios(steps, own, horizon)),
        "seconds": statistics.summary(taken),
        "seconds_ratios": {
            rival: statistics.summary(seconds_ratios(entries[rival]))
            for rival in dict.fromkeys((ADAM[method.weights], ALONE[method.weights]))
            if rival in entries
        },
        "area": statistics.summary([statistics.area(getattr(c, method.weights)) for c in curves]),
        "final": statistics.summary(entry.finals()),
        "test": {key: statistics.summary([t[key] for t in tests]) for key in tests[0]},
        "reached": int(np.isfinite(steps).sum()), "runs": len(curves), "seeds": seeds,
        **(transitions.of_runs(curves) if method.phased else {}),
    }  # fmt: skip


def ladder(race: Race, level: Level) -> dict[str, Any]:
    """Ratios at a row of targets, so that no single level decides; settings of `level`."""
    entries, reference = race.entries[level.name], level.references["raw"]
    lowest = min(lv.target for lv in race.levels)
    raw = [c.raw for c in entries[reference].curves()]
    rungs = statistics.ladder(raw, race.task.smoothing, lowest)

    def ratio(name: str, target: float) -> float:
        own = entries[level.reference(METHODS[name])].hits(target, entries[name].runs)
        steps = entries[name].hits(target)
        return statistics.middle(statistics.paired_ratios(steps, own, race.task.num_steps))

    return {
        "reference": reference, "references": level.references, "targets": rungs,
        "ratios": {name: [ratio(name, rung) for rung in rungs] for name in entries},
    }  # fmt: skip


def as_json(race: Race) -> dict[str, Any]:
    """All figures of a race."""
    task, tuned = race.task, race.tuned["methods"]
    return plain({
        "task": task.name, "metric": task.metric, "data": task.digest,
        "evidence": race.evidence, "num_steps": task.num_steps, "eval_every": task.eval_every,
        "smoothing": task.smoothing, "hold": task.hold,
        "tuning_seeds": list(grids.tuning_seeds(task)),
        "target_seeds": list(grids.TARGET_SEEDS), "ratio": RATIO,
        "levels": {
            level.name: {
                **dataclasses.asdict(level), "environment": environment(),
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
            for name, entry in tuned.items()
        },
        "at_edge": {
            name: [level for level, edge in entry.get("at_edge", {}).items() if edge]
            for name, entry in tuned.items()
        },
        "environment": environment(),
    })  # fmt: skip
