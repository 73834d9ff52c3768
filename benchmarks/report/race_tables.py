"""The tables of a race, from what its JSON holds."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.methods.method import KNOWS_T
from benchmarks.report.text import number, restored, setting, spread, tests
from benchmarks.terminal import table


def print_race(race: Mapping[str, Any], console: Console, *, wide: bool = False) -> None:
    """Every level's table, step times, and what a reader must know.

    Wide tables have ratios of seconds and areas as well, for which a terminal has no room.
    """
    for name in race["levels"]:
        console.print(level_table(race, name, wide=wide))
    times = ", ".join(
        f"{name} {1e3 * t['seconds']:.2f} ms ({t['ratio_to_constant']:.2f}x)"
        for name, t in race["step_times"].items()
    )
    console.print(f"Step times, amortised, interleaved: {times}", style="dim")
    console.print(f"Ratio: {race['ratio']}.", style="dim")
    at_edge = {name: levels for name, levels in race.get("at_edge", {}).items() if levels}
    if at_edge:
        edges = "; ".join(f"{name} ({', '.join(levels)})" for name, levels in at_edge.items())
        console.print(f"At the edge of the grid: {edges}.", style="yellow")
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
    metrics = " /\n".join(m.replace("_", " ") for m in next(iter(rows.values()))["test"])
    more = ("seconds / Adam", "seconds / base", "area") if wide else ()
    shown = table(
        title,
        ("method", "setting", "steps to target", "ratio to own hit", "seconds", *more,
         "final\nvalidation", f"test {metrics}", "reached"),
        left=2,
    )  # fmt: skip
    medians = {method: restored(row["steps"]["median"]) for method, row in rows.items()}
    fewest, references = min(medians.values()), set(level["references"].values())
    for method, row in rows.items():
        marks = " *" * (method in references) + " †" * (KNOWS_T in row["note"])
        shown.add_row(
            f"{method}{marks}", setting(row["hyperparameters"]),
            spread(row["steps"], "{:.0f}", beyond=f"> {horizon}"),
            spread(row["ratio"], "{:.2f}", beyond="-"),
            spread(row["seconds"], "{:.2g}", beyond="-"), *(_more(row) if wide else ()),
            number(row["final"]["median"], "{:.3g}", "-"), tests(row["test"]),
            f"{row['reached']}/{row['runs']}",
            style="bold green" if medians[method] == fewest < math.inf else None,
        )  # fmt: skip
    shown.caption = (
        "* its own hit is the denominator; † knows T; median [95 % interval] over as many seeds as "
        "reached says; ratios are of the seeds that both have"
    )
    return shown


def _more(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Ratios of seconds to Adam's and to the base's own, and the area."""
    ratios = row.get("seconds_ratios", {})
    adam = ratios.get("constant")
    alone = next((ratios[name] for name in ratios if name != "constant"), None)
    shown = [("-" if s is None else spread(s, "{:.2f}", beyond="-")) for s in (adam, alone)]
    return (*shown, number(row.get("area", {}).get("median"), "{:.3g}", "-"))


def ladder_table(level: str, climbed: Mapping[str, Any], metric: str) -> Table:
    """Steps over the reference's own at a row of targets."""
    names = climbed.get("references", {"raw": climbed["reference"]}).values()
    own = " or ".join(dict.fromkeys(names))
    title = f"Every target ({metric}), settings of the level {level}: steps over those of {own}"
    rows = ((name, *(number(ratio, "{:.2f}", "-") for ratio in ratios))
            for name, ratios in climbed["ratios"].items())  # fmt: skip
    return table(title, ("method", *(f"{t:.3g}" for t in climbed["targets"])), rows)
