"""Accuracy and speed of the curvature probes: the whole of it, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from rich.console import Console

from benchmarks.measurements import sketch_accuracy, sketch_speed
from benchmarks.measurements.sketch_speed import LAYERS
from benchmarks.measurements.table import table
from benchmarks.runs.store import environment

PEERS = ("matfree", "traceax", "lineax")
MODELS: dict[str, Callable[[], sketch_accuracy.Model]] = {
    "mlp": sketch_accuracy.mlp,
    "digits_vit": sketch_accuracy.digits_vit,
}
_SIGNAL = {
    "probe": "{probe}",
    "signal": "{signal}",
    "truth": "{truth:.4g}",
    "bias": "{bias:+.1%} ± {bias_error:.1%}",
    "rms": "{rms:.1%}",
    "reported error": "{reported:.1%}",
    "coverage": "{coverage:.0%}",
}
_SPEED = {
    "size": "{size}",
    "task, operator": "{task}, {operator}",
    "peer": "{peer}",
    "ours": lambda row: f"{1e3 * row['seconds']:.1f} ms",
    "time": "{time_ratio:.2f}",
    "bound": "{time_ratio_upper:.2f}",
    "memory": "{memory_ratio:.2f}",
    "": lambda row: "met" if row["met"] else "[red]missed[/]",
}


def measure(
    *,
    draws: int,
    rounds: int,
    sizes: Sequence[str],
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Everything that `sketch.json` holds.

    The accuracy is over `draws` of each probe's key; the models `sizes` are timed in `rounds`.
    """
    signals, ritz, speed = [], [], []
    for name, make in MODELS.items():
        announce(f"accuracy on {name}")
        model = make()
        exact = sketch_accuracy.truth(model)
        signals += [{"model": name, **row} for row in sketch_accuracy.signals(model, exact, draws)]
        ritz += [{"model": name, **row} for row in sketch_accuracy.ritz(model, exact, draws)]
    for name in sizes:
        announce(f"speed at {name} parameters")
        speed += [{"size": name, **row} for row in sketch_speed.measure(LAYERS[name], rounds)]
    return {
        "environment": {**environment(), **{name: metadata.version(name) for name in PEERS}},
        "limits": {"time_ratio_upper": sketch_speed.LIMIT, "memory_ratio": 1.0},
        "rounds": rounds,
        "signals": signals,
        "ritz": ritz,
        "speed": speed,
    }


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    for name in dict.fromkeys(row["model"] for row in results["signals"]):
        rows = [row for row in results["signals"] if row["model"] == name]
        title = (
            f"{name}: {rows[0]['parameters']} parameters, {rows[0]['examples']} examples, "
            f"{rows[0]['draws']} draws; relative to the dense float64 truth"
        )
        console.print(table(title, rows, _SIGNAL, left=2))
        for row in results["ritz"]:
            if row["model"] == name:
                worst = ", ".join(f"{error:.1e}" for error in row["worst"])
                words = f"Leading Ritz values after {row['steps']} steps, worst relative error:"
                console.print(f"{words} {worst}", style="dim")
    title = "Time and memory over the peer's: medians of paired rounds, upper 95 % bounds"
    console.print(table(title, results["speed"], _SPEED, left=3))
