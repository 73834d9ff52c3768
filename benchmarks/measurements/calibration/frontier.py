"""False alarms against delay, over settings of `stopped_falling` and `stall`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.measurements.calibration import simulate
from benchmarks.measurements.calibration.cases import NUM_STEPS, Banks, Case, run
from benchmarks.measurements.calibration.probe_noise import window_steps
from benchmarks.measurements.calibration.streams import NOISES, Course

FAMILIES = ("stopped_falling", "stall")
DRIFTS = (0.5, 1.0, 2.0)  # |d log x / d log t| of what must not fire
CHANGE, BAR = 1000, 0.05
SEARCH_RUNS = 400
# The tolerance in drifts: at one, the null lies on the edge of what the trigger tests.
GRID: dict[str, tuple[float, ...]] = {
    "tolerance": (0.25, 0.4, 0.5, 0.6, 0.75, 1.0), "z": (1.282, 1.645, 2.326, 3.09),
    "memory": (0.35, 0.5, 0.7, 1.0), "patience": (2, 3, 4), "min_points": (4, 6),
}  # fmt: skip
DEFAULT = {"tolerance": 1.0, "z": 1.282, "memory": 0.7, "patience": 2, "min_points": 4}
Setting = Mapping[str, float]  # arguments of a trigger


def grid(drift: float) -> list[Setting]:
    """All settings for one drift, the defaults first."""
    made = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    return [DEFAULT, *({**s, "tolerance": s["tolerance"] * drift} for s in made)]


def columns(settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    """[settings] each."""
    return {name: np.asarray([setting[name] for setting in settings]) for name in GRID}


def measure(family: str, drift: float, banks: Banks, runs: int) -> dict[str, Any]:
    """The settings that no other one beats in both, found on some runs and measured on others.

    The null is a dimension that falls as t^-drift for ever (`stall` would treat a rise alike:
    the noise is nearly symmetric). The change is a dimension that falls so until step 1000 and
    then stays. The search goes by the worst of the measured and the heavy-tailed noise.
    """
    settings = grid(drift)
    searched = rows(family, settings, drift, banks, SEARCH_RUNS, seed=1)
    chosen = [0, *(i for i in pareto(searched) if i)]
    kept = rows(family, [settings[i] for i in chosen], drift, banks, runs, seed=2)
    default, others = kept[0], kept[1:]
    meeting = [row for row in kept if row["worst_false_alarms"] <= BAR]
    return {
        "trigger": family, "drift": drift, "settings_searched": len(settings), "default": default,
        "frontier": sorted(others, key=lambda row: row["worst_false_alarms"]),
        "at_the_bar": min(meeting, key=_delays, default=None),
    }  # fmt: skip


def rows(
    family: str, settings: Sequence[Setting], drift: float, banks: Banks, runs: int, seed: int
) -> list[dict[str, Any]]:
    """One row for each setting."""

    def fired(noise: str, course: Course, seed: int) -> np.ndarray:
        case = Case(family, noise, "", "null", course)
        return run(case, banks, runs, seed, settings=columns(settings), batch=runs)

    alarms = {noise: fired(noise, Course(-drift), seed) for noise in NOISES}
    late = fired("measured", Course(-drift, CHANGE), seed + 100)
    steps, out = window_steps(NUM_STEPS), []
    for index, setting in enumerate(settings):
        nulls = {noise: simulate.share(np.isfinite(a[index])) for noise, a in alarms.items()}
        out.append({
            **setting, "false_alarms": nulls,
            "worst_false_alarms": max(nulls[n]["share"] for n in ("measured", "student")),
            "delay": simulate.delay(late[index], CHANGE, steps),
        })  # fmt: skip
    return out


def _delays(row: dict[str, Any]) -> tuple[float, float, float]:
    late = row["delay"]
    return late["median"]["factor"], late["quantile_90"]["factor"], row["worst_false_alarms"]


def pareto(searched: Sequence[dict[str, Any]], steps: int = 12) -> list[int]:
    """Indices of the fastest settings at each of a ladder of false-alarm rates."""
    limits = np.concatenate([[0.0], np.geomspace(2.0 / SEARCH_RUNS, 0.5, steps)])
    found = []
    for limit in limits:
        allowed = [i for i, row in enumerate(searched) if row["worst_false_alarms"] <= limit]
        best = min(allowed, key=lambda i: _delays(searched[i]), default=None)
        if best is not None and np.isfinite(_delays(searched[best])[0]) and best not in found:
            found.append(best)
    return found
