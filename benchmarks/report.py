"""The tables of a race, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import race as racing
from benchmarks.levels import Level
from benchmarks.race import Race


def print_race(race: Race, console: Console) -> None:
    for level in race.levels:
        console.print(level_table(race, level))
    names = ", ".join(
        f"{name} {1e3 * t.seconds:.2f} ms ({t.ratio:.2f}x)" for name, t in race.times.items()
    )
    console.print(f"Step times, amortised, interleaved: {names}", style="dim")
    console.print(f"Ratio: {racing.RATIO}.", style="dim")
    edges = [
        f"{name} ({level})"
        for name, entry in race.tuned["methods"].items()
        for level, edge in entry.get("at_edge", {}).items()
        if edge
    ]
    if edges:
        console.print(f"At the edge of the grid: {', '.join(edges)}.", style="yellow")
    if not race.evidence:
        console.print(
            "A quick look: one seed, a short horizon, untuned settings. This is no evidence.",
            style="bold red",
        )


def level_table(race: Race, level: Level) -> Table:
    task = race.task
    title = f"{task.name}: {level.title}  (target {level.target:.4g}, T = {task.num_steps})"
    if not race.evidence:
        title += "  [bold red]quick: no evidence[/]"
    table = Table(title=title, title_justify="left", header_style="bold")
    rows = {name: racing.row(race, level, name) for name in race.entries[level.name]}
    metrics = next(iter(rows.values()))["test"]
    table.add_column("method", no_wrap=True)
    table.add_column("setting", style="dim")
    for heading in ("steps to target", "ratio to own hit", "seconds", "final validation"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("test " + " / ".join(m.replace("_", " ") for m in metrics), justify="right")
    table.add_column("reached", justify="right")
    fewest = min(r["steps"]["median"] for r in rows.values())
    references = set(level.references.values())
    for name, r in rows.items():
        best = r["steps"]["median"] == fewest < math.inf
        label = f"{name}{' *' if name in references else ''}{' †' if r['note'] else ''}"
        table.add_row(
            label,
            " ".join(f"{v:g}" for v in r["hyperparameters"].values()),
            spread(r["steps"], "{:.0f}", beyond=f"> {task.num_steps}"),
            spread(r["ratio"], "{:.2f}", beyond="-"),
            spread(r["seconds"], "{:.2g}", beyond="-"),
            f"{r['final']['median']:.3g}",
            tests(r["test"]),
            f"{r['reached']}/{r['runs']}",
            style="bold green" if best else None,
        )
    table.caption = "* its own hit is the denominator; † knows T; median [95 % interval]"
    return table


def spread(summary: Mapping[str, Any], form: str, beyond: str) -> str:
    """Median [low, high], with `beyond` for what was not reached."""

    def show(value: float) -> str:
        return form.format(value) if math.isfinite(value) else beyond

    median, low, high = (show(summary[key]) for key in ("median", "low", "high"))
    return median if low == high == median else f"{median} [{low}, {high}]"


def tests(metrics: Mapping[str, Any]) -> str:
    return " / ".join(f"{metric['median']:.3g}" for metric in metrics.values())
