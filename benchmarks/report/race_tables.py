"""The tables of a race, from what its JSON holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.methods.method import KNOWS_T
from benchmarks.report.text import known, number, spread, tests


def print_race(race: Mapping[str, Any], console: Console, *, wide: bool = False) -> None:
    """Every level's table, step times, and what a reader must know.

    Args:
      race: what `benchmarks.race.results` gives, or its JSON read back.
      wide: with ratios of seconds and areas, which a terminal has no room for.
    """
    for name in race["levels"]:
        console.print(level_table(race, name, wide=wide))
    times = ", ".join(
        f"{name} {1e3 * t['seconds']:.2f} ms ({t['ratio_to_constant']:.2f}x)"
        for name, t in race["step_times"].items()
    )
    console.print(f"Step times, amortised, interleaved: {times}", style="dim")
    console.print(f"Ratio: {race['ratio']}.", style="dim")
    edges = [
        f"{name} ({', '.join(levels)})"
        for name, levels in race.get("at_edge", {}).items()
        if levels
    ]
    if edges:
        console.print(f"At the edge of the grid: {'; '.join(edges)}.", style="yellow")
    if not race["evidence"]:
        console.print(
            "A look, no evidence: few seeds, a short horizon, untuned settings or other data.",
            style="bold red",
        )


def level_table(race: Mapping[str, Any], name: str, *, wide: bool = False) -> Table:
    level, horizon = race["levels"][name], race["num_steps"]
    title = f"{race['task']}: {level['title']}  (target {level['target']:.4g}, T = {horizon})"
    if not race["evidence"]:
        title += "  [bold red]quick: no evidence[/]"
    rows = level["methods"]
    metrics = " / ".join(m.replace("_", " ") for m in next(iter(rows.values()))["test"])
    more = ("seconds / Adam", "seconds / refinement", "area") if wide else ()
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("setting", style="dim")
    for heading in ("steps to target", "ratio to own hit", "seconds", *more, "final validation"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column(f"test {metrics}", justify="right")
    table.add_column("reached", justify="right")
    medians = {method: known([row["steps"]["median"]])[0] for method, row in rows.items()}
    fewest = min(medians.values())
    references = set(level["references"].values())
    for method, row in rows.items():
        marks = " *" * (method in references) + " †" * (KNOWS_T in row["note"])
        table.add_row(
            f"{method}{marks}",
            " ".join(f"{v:g}" for v in row["hyperparameters"].values()),
            spread(row["steps"], "{:.0f}", beyond=f"> {horizon}"),
            spread(row["ratio"], "{:.2f}", beyond="-"),
            spread(row["seconds"], "{:.2g}", beyond="-"),
            *(_more(row) if wide else ()),
            number(row["final"]["median"], "{:.3g}", "-"),
            tests(row["test"]),
            f"{row['reached']}/{row['runs']}",
            style="bold green" if medians[method] == fewest < math.inf else None,
        )
    table.caption = (
        "* its own hit is the denominator; † knows T; median [95 % interval] over as many seeds as "
        "reached says; ratios are of the seeds that both have"
    )
    return table


def _more(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Ratios of seconds to Adam's and to the refinement's own, and the area."""
    ratios = row.get("seconds_ratios", {})
    adam = ratios.get("constant")
    alone = next((ratios[name] for name in ratios if name != "constant"), None)
    shown = [("-" if s is None else spread(s, "{:.2f}", beyond="-")) for s in (adam, alone)]
    return (*shown, number(row.get("area", {}).get("median"), "{:.3g}", "-"))
