"""The calibration's tables, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    console.print(_noise(results), _verdicts(results), _delays(results))
    for entry in results["frontiers"]:
        console.print(_frontier(entry, results["bar"]))


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _noise(results: Mapping[str, Any]) -> Table:
    title = "One window of the default probe: the log of the dimension"
    right = ("bias", "standard deviation", "median reported", "without a value")
    table = _table(title, ("eigenvalues",), right)
    for name, row in results["probe_noise"].items():
        if isinstance(row, Mapping) and "sd_of_log" in row:
            table.add_row(
                name,
                f"{row['bias_of_log']:+.2f}",
                f"{row['sd_of_log']:.2f}",
                f"{row['median_reported_error']:.2f}",
                f"{row['without_a_value']:.1%}",
            )
    correlation = results["probe_noise"]["autocorrelation"]
    table.caption = (
        f"successive windows of one stream correlate by {correlation['value']:+.3f} "
        f"± {correlation['error']:.3f}"
    )
    return table


def _verdicts(results: Mapping[str, Any]) -> Table:
    title = f"Share of {results['num_steps']} step null runs with a false alarm, worst stream"
    right = ("beyond the edge", "", "stream", "on the edge too", "stream ")
    table = _table(title, ("trigger", "noise"), right)
    for row in results["verdicts"]:
        table.add_row(
            row["trigger"],
            row["noise"],
            _share(row["false_alarms"]),
            "met" if row["met"] else "[red]missed[/]",
            row["worst_stream"],
            _share(row["false_alarms_with_edges"]),
            row["worst_stream_with_edges"],
        )
    return table


def _delays(results: Mapping[str, Any]) -> Table:
    title = "Planted changes: factor of t (and measurements) from the change to the verdict"
    right = ("early", "never", "median", "90 %")
    table = _table(title, ("trigger", "noise", "stream"), right)
    for row in results["cases"]:
        if row["kind"] == "change" and row["noise"] in ("measured", "normal"):
            table.add_row(row["trigger"], row["noise"], row["stream"], *_late(row))
    return table


def _late(row: Mapping[str, Any]) -> tuple[str, ...]:
    def show(quantile: Mapping[str, Any]) -> str:
        factor = quantile["factor"]
        if factor is None or math.isinf(factor):
            return "-"
        return f"{factor:.2f} ({quantile['measurements']:.0f})"

    return (
        f"{row['early']['share']:.3f}",
        f"{row['never']['share']:.3f}",
        show(row["median"]),
        show(row["quantile_90"]),
    )


def _frontier(entry: Mapping[str, Any], bar: float) -> Table:
    title = f"{entry['trigger']}: null t^-{entry['drift']:g}, change to rest at 1000"
    left = ("tolerance", "z", "memory", "patience", "points")
    right = ("false alarms", "heavy tails", "autoregressive", "early", "never", "median", "90 %")
    table = _table(title, left, right)
    for row in (entry["default"], *entry["frontier"]):
        alarms = [f"{row['false_alarms'][n]['share']:.3f}" for n in _NOISES]
        default = row is entry["default"]
        numbers = [f"{row[key]:g}" for key in ("tolerance", "z", "memory", "patience")]
        table.add_row(
            *numbers,
            f"{row['min_points']:g}",
            *alarms,
            *_late(row["delay"]),
            style="bold" if default else "green" if row["worst_false_alarms"] <= bar else None,
        )
    table.caption = "first row: the default; green: false alarms within the bar"
    return table


_NOISES = ("measured", "student", "autoregressive")


def _share(test: Mapping[str, Any]) -> str:
    return f"{test['share']:.3f} [{test['low']:.3f}, {test['high']:.3f}]"
