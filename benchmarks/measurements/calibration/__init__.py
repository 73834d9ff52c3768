"""How often triggers fire when they should not, and how late when they should.

Each trigger runs, as it is, on thousands of synthetic streams at the default probe's cadence
over 20,000 steps. On a null the phase must not end, on a change it must from a planted step on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measurements.calibration import cases, frontier, probe_noise
from benchmarks.runs.store import environment

RUNS, WINDOWS = 4000, 2000
AGREEMENTS = (cases.NOISY, 0.75, cases.AGREEING, 0.9)


def measure(
    runs: int = RUNS, windows: int = WINDOWS, announce: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Everything that `calibration.json` holds.

    Each case has `runs` streams, and a quarter of them where there is a loss at every step.
    The probe's noise is measured on so many of its windows.
    """
    announce("the probe's noise")
    banks = {level: probe_noise.bank(probe_noise.REFERENCE, level, windows) for level in AGREEMENTS}
    noise = {
        name: probe_noise.summary(probe_noise.bank(name, cases.NOISY, windows), windows)
        for name in probe_noise.SPECTRA
    }
    rows = []
    for case in cases.all_cases():
        announce(f"{case.trigger}, {case.noise}: {case.stream}")
        rows.append(cases.result(case, cases.run(case, banks, runs // 4 if case.dense else runs)))
    frontiers = []
    for family in frontier.FAMILIES:
        for drift in frontier.DRIFTS:
            announce(f"frontier of {family} against t^-{drift:g}")
            frontiers.append(frontier.measure(family, drift, banks, runs))
    steps = probe_noise.window_steps(cases.NUM_STEPS)
    return {
        "environment": environment(), "num_steps": cases.NUM_STEPS, "bar": frontier.BAR,
        "windows": {"steps": steps, "per_factor_of_e": 1.0 / np.log(steps[-1] / steps[-2])},
        "probe_noise": {
            "reference": probe_noise.REFERENCE, **noise,
            "autocorrelation": probe_noise.autocorrelation(windows),
        },
        "verdicts": verdicts(rows), "cases": rows, "frontiers": frontiers,
    }  # fmt: skip


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst null of each trigger and noise, with and without those on its very edge."""
    found = []
    for trigger, noise in dict.fromkeys((row["trigger"], row["noise"]) for row in rows):
        own = [row for row in rows if (row["trigger"], row["noise"]) == (trigger, noise)]
        nulls = [row for row in own if row["kind"] == "null"]
        beyond = [row for row in nulls if not row["edge"]]
        if not beyond:
            continue
        worst, at_all = (max(those, key=lambda row: row["share"]) for those in (beyond, nulls))
        found.append({
            "trigger": trigger, "noise": noise, "worst_stream": worst["stream"],
            "false_alarms": {key: worst[key] for key in ("share", "low", "high")},
            "met": worst["share"] <= frontier.BAR, "worst_stream_with_edges": at_all["stream"],
            "false_alarms_with_edges": {key: at_all[key] for key in ("share", "low", "high")},
        })  # fmt: skip
    return found
