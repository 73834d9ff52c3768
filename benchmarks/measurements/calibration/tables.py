"""The calibration's tables, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from benchmarks.measurements.table import table


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    noise = results["probe_noise"]
    correlation = noise["autocorrelation"]
    console.print(
        table(
            "One window of the default probe: the log of the dimension",
            [_noise(name, row) for name, row in noise.items() if "sd_of_log" in row],
            caption=f"successive windows of one stream correlate by {correlation['value']:+.3f} "
            f"± {correlation['error']:.3f}",
        ),
        table(
            f"Share of {results['num_steps']} step null runs with a false alarm, worst stream",
            [_verdict(row) for row in results["verdicts"]],
            left=2,
        ),
        table(
            "Planted changes: factor of t (and measurements) from the change to the verdict",
            [
                {"trigger": row["trigger"], "noise": row["noise"], "stream": row["stream"]}
                | _delay(row)
                for row in results["cases"]
                if row["kind"] == "change" and row["noise"] in ("measured", "normal")
            ],
            left=3,
        ),
    )
    for entry in results["frontiers"]:
        rows = [entry["default"], *entry["frontier"]]
        met = [row["worst_false_alarms"] <= results["bar"] for row in rows[1:]]
        title = f"{entry['trigger']}: null t^-{entry['drift']:g}, change to rest at 1000"
        caption = "first row: the default; green: false alarms within the bar"
        styles = ["bold", *("green" if is_met else None for is_met in met)]
        console.print(table(title, [_setting(row) for row in rows], 5, caption, styles))


def _noise(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "eigenvalues": name,
        "bias": f"{row['bias_of_log']:+.2f}",
        "standard deviation": f"{row['sd_of_log']:.2f}",
        "median reported": f"{row['median_reported_error']:.2f}",
        "without a value": f"{row['without_a_value']:.1%}",
    }


def _verdict(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "trigger": row["trigger"],
        "noise": row["noise"],
        "beyond the edge": _share(row["false_alarms"]),
        "": "met" if row["met"] else "[red]missed[/]",
        "stream": row["worst_stream"],
        "on the edge too": _share(row["false_alarms_with_edges"]),
        "stream ": row["worst_stream_with_edges"],
    }


def _delay(row: Mapping[str, Any]) -> dict[str, str]:
    def show(quantile: Mapping[str, Any]) -> str:
        factor = quantile["factor"]
        if factor is None or math.isinf(factor):
            return "-"
        return f"{factor:.2f} ({quantile['measurements']:.0f})"

    return {
        "early": f"{row['early']['share']:.3f}",
        "never": f"{row['never']['share']:.3f}",
        "median": show(row["median"]),
        "90 %": show(row["quantile_90"]),
    }


def _setting(row: Mapping[str, Any]) -> dict[str, str]:
    numbers = ("tolerance", "z", "memory", "patience", "min_points")
    noises = {
        "false alarms": "measured",
        "heavy tails": "student",
        "autoregressive": "autoregressive",
    }
    return {
        **{name.removeprefix("min_"): f"{row[name]:g}" for name in numbers},
        **{head: f"{row['false_alarms'][noise]['share']:.3f}" for head, noise in noises.items()},
        **_delay(row["delay"]),
    }


def _share(test: Mapping[str, Any]) -> str:
    return f"{test['share']:.3f} [{test['low']:.3f}, {test['high']:.3f}]"
