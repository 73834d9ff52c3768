"""The calibration's tables, for a terminal."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from benchmarks.terminal import figures


def _late(quantile: str) -> Callable[[Mapping[str, Any]], str]:
    """Factor of t, and measurements, until a quantile of the runs has ended."""

    def show(row: Mapping[str, Any]) -> str:
        found = row[quantile]
        if found["factor"] is None or math.isinf(found["factor"]):
            return "-"
        return "{factor:.2f} ({measurements:.0f})".format_map(found)

    return show


_NOISE = {
    "eigenvalues": "{name}", "bias": "{bias_of_log:+.2f}", "standard deviation": "{sd_of_log:.2f}",
    "median reported": "{median_reported_error:.2f}", "without a value": "{without_a_value:.1%}",
}  # fmt: skip
_SHARE = "{{{0}[share]:.3f}} [{{{0}[low]:.3f}}, {{{0}[high]:.3f}}]"
_VERDICT = {
    "trigger": "{trigger}", "noise": "{noise}", "beyond the edge": _SHARE.format("false_alarms"),
    "": lambda row: "met" if row["met"] else "[red]missed[/]", "stream": "{worst_stream}",
    "on the edge too": _SHARE.format("false_alarms_with_edges"),
    "stream ": "{worst_stream_with_edges}",
}  # fmt: skip
_DELAY = {
    "early": "{early[share]:.3f}", "never": "{never[share]:.3f}",
    "median": _late("median"), "90 %": _late("quantile_90"),
}  # fmt: skip
_CHANGE = {"trigger": "{trigger}", "noise": "{noise}", "stream": "{stream}", **_DELAY}
_SETTING = {
    "tolerance": "{tolerance:g}", "z": "{z:g}", "memory": "{memory:g}",
    "patience": "{patience:g}", "points": "{min_points:g}",
    "false alarms": "{false_alarms[measured][share]:.3f}",
    "heavy tails": "{false_alarms[student][share]:.3f}",
    "autoregressive": "{false_alarms[autoregressive][share]:.3f}", **_DELAY,
}  # fmt: skip


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    noise = results["probe_noise"]
    title = "One window of the default probe: the log of the dimension"
    rows = [{"name": name, **row} for name, row in noise.items() if "sd_of_log" in row]
    words = "successive windows of one stream correlate by {value:+.3f} ± {error:.3f}"
    console.print(figures(title, rows, _NOISE, caption=words.format_map(noise["autocorrelation"])))
    title = f"Share of {results['num_steps']} step null runs with a false alarm, worst stream"
    console.print(figures(title, results["verdicts"], _VERDICT, left=2))
    title = "Planted changes: factor of t (and measurements) from the change to the verdict"
    changes = [row for row in results["cases"] if row["kind"] == "change"]
    rows = [row for row in changes if row["noise"] in ("measured", "normal")]
    console.print(figures(title, rows, _CHANGE, left=3))
    for entry in results["frontiers"]:
        title = f"{entry['trigger']}: null t^-{entry['drift']:g}, change to rest at 1000"
        rows = [{**row, **row["delay"]} for row in (entry["default"], *entry["frontier"])]
        met = [row["worst_false_alarms"] <= results["bar"] for row in entry["frontier"]]
        styles = ["bold", *("green" if is_met else None for is_met in met)]
        caption = "first row: the default; green: false alarms within the bar"
        console.print(figures(title, rows, _SETTING, 5, caption, styles))
