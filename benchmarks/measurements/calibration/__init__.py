"""How often triggers fire when they should not, and how late when they should.

Each trigger runs, as it is, on thousands of synthetic streams at the default probe's cadence
over 20,000 steps. A null is a stream on which the phase must not end, a change one on which
it must from a planted step on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.measurements.calibration import cases, frontier, lists, probe_noise
from benchmarks.runs.store import environment

RUNS = 4000
RUNS_WITH_LOSS = 1000  # 20,000 looks each
WINDOWS = 2000
AGREEMENTS = (cases.NOISY, 0.75, cases.AGREEING, 0.9)


def banks(windows: int = WINDOWS) -> cases.Banks:
    return {level: probe_noise.bank(probe_noise.REFERENCE, level, windows) for level in AGREEMENTS}


def measure(
    runs: int = RUNS, windows: int = WINDOWS, announce: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Everything that `calibration.json` holds.

    Args:
      runs: streams for each case; a quarter of them where there is a loss at every step.
      windows: of the probe, to measure its noise.
      announce: called with what begins.
    """
    announce("the probe's noise")
    known = banks(windows)
    noise = {}
    for name in probe_noise.SPECTRA:
        noise[name] = probe_noise.summary(probe_noise.bank(name, cases.NOISY, windows), windows)
    noise["autocorrelation"] = probe_noise.autocorrelation(windows)
    rows = []
    for case in lists.all_cases():
        announce(f"{case.trigger}, {case.noise}: {case.stream}")
        count = runs * RUNS_WITH_LOSS // RUNS if case.dense else runs
        rows.append(cases.result(case, cases.run(case, known, count)))
    frontiers = []
    for family in frontier.FAMILIES:
        for drift in frontier.DRIFTS:
            announce(f"frontier of {family} against t^-{drift:g}")
            frontiers.append(frontier.measure(family, drift, known, runs))
    steps = probe_noise.window_steps(cases.NUM_STEPS)
    return {
        "environment": environment(),
        "num_steps": cases.NUM_STEPS,
        "bar": frontier.BAR,
        "windows": {"steps": steps, "per_factor_of_e": 1.0 / np.log(steps[-1] / steps[-2])},
        "probe_noise": {"reference": probe_noise.REFERENCE, **noise},
        "verdicts": verdicts(rows),
        "cases": rows,
        "frontiers": frontiers,
    }


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst null of each trigger and noise, with and without those on its very edge."""
    found = []
    pairs = dict.fromkeys((row["trigger"], row["noise"]) for row in rows)
    for trigger, noise in pairs:
        nulls = [
            row
            for row in rows
            if (row["trigger"], row["noise"], row["kind"]) == (trigger, noise, "null")
        ]
        beyond = [row for row in nulls if not row["edge"]]
        if not beyond:
            continue
        worst, at_all = (max(rows, key=lambda row: row["share"]) for rows in (beyond, nulls))
        found.append(
            {
                "trigger": trigger,
                "noise": noise,
                "worst_stream": worst["stream"],
                "false_alarms": {key: worst[key] for key in ("share", "low", "high")},
                "met": worst["share"] <= frontier.BAR,
                "worst_stream_with_edges": at_all["stream"],
                "false_alarms_with_edges": {key: at_all[key] for key in ("share", "low", "high")},
            }
        )
    return found


def find(results: Mapping[str, Any], trigger: str, noise: str, stream: str) -> dict[str, Any]:
    """The row of one case; KeyError where there is none."""
    for row in results["cases"]:
        if (row["trigger"], row["noise"], row["stream"]) == (trigger, noise, stream):
            return row
    raise KeyError(f"no case {trigger!r}, {noise!r}, {stream!r}: measure calibration anew.")
