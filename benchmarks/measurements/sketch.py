"""Accuracy and speed of the curvature probes: the whole of it, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measurements import sketch_accuracy, sketch_speed
from benchmarks.measurements.sketch_speed import LAYERS
from benchmarks.runs.store import environment

PEERS = ("matfree", "traceax", "lineax")
MODELS: dict[str, Callable[[], sketch_accuracy.Model]] = {
    "mlp": sketch_accuracy.mlp,
    "digits_vit": sketch_accuracy.digits_vit,
}


def measure(
    *,
    draws: int,
    rounds: int,
    sizes: Sequence[str],
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything that `sketch.json` holds.

    Args:
      draws: of each probe's key, for the accuracy.
      rounds: of the interleaved timings.
      sizes: names of the timed models.
      announce: called with what begins.
    """
    accuracy, speed = {}, {}
    for name, make in MODELS.items():
        announce(f"accuracy on {name}")
        accuracy[name] = sketch_accuracy.measure(make(), draws)
    for name in sizes:
        announce(f"speed at {name} parameters")
        speed[name] = sketch_speed.measure(LAYERS[name], rounds)
    return {
        "environment": {**environment(), **versions()},
        "limits": {"time_ratio_upper": sketch_speed.LIMIT, "memory_ratio": 1.0},
        "rounds": rounds,
        "accuracy": accuracy,
        "speed": speed,
    }


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PEERS}


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    for name, entry in results["accuracy"].items():
        console.print(_accuracy_table(name, entry))
        for top in entry["top_eigenvalues"]:
            worst = ", ".join(f"{error:.1e}" for error in top["worst"])
            console.print(
                f"Leading Ritz values after {top['steps']} steps, worst relative error: {worst}",
                style="dim",
            )
    console.print(_speed_table(results["speed"]))


def _accuracy_table(name: str, entry: Mapping[str, Any]) -> Table:
    title = (
        f"{name}: {entry['parameters']} parameters, {entry['examples']} examples, "
        f"{entry['draws']} draws; relative to the dense float64 truth"
    )
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("probe", "signal", "truth", "bias", "rms", "reported error", "coverage"):
        table.add_column(heading, justify="left" if heading in ("probe", "signal") else "right")
    for row in entry["signals"]:
        table.add_row(
            row["probe"],
            row["signal"],
            f"{row['truth']:.4g}",
            f"{row['bias']:+.1%} ± {row['bias_error']:.1%}",
            f"{row['rms']:.1%}",
            f"{row['reported']:.1%}",
            f"{row['coverage']:.0%}",
        )
    return table


def _speed_table(speed: Mapping[str, Any]) -> Table:
    title = "Time and memory over the peer's: medians of paired rounds, upper 95 % bounds"
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("size", "task, operator", "peer", "ours", "time", "bound", "memory", ""):
        left = heading in ("size", "task, operator", "peer")
        table.add_column(heading, justify="left" if left else "right")
    for size, entry in speed.items():
        for contest, result in entry.items():
            if contest == "parameters":
                continue
            for peer, verdict in result["peers"].items():
                table.add_row(
                    size,
                    contest,
                    peer,
                    f"{1e3 * result['seconds']['fgo']:.1f} ms",
                    f"{verdict['time_ratio']['median']:.2f}",
                    f"{verdict['time_ratio']['upper']:.2f}",
                    f"{verdict['memory_ratio']:.2f}",
                    "met" if verdict["met"] else "[red]missed[/]",
                )
    return table
