"""One page of all results: what the terminal would print, recorded; pictures lie beside it."""

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.measurements import overhead, probe_accuracy, stream
from benchmarks.measurements.calibration import tables as calibration
from benchmarks.report import field, readme
from benchmarks.report.race_tables import ladder_table, print_race
from benchmarks.report.reading import Results
from benchmarks.studies import parts, transforms, which_trigger
from benchmarks.studies.study import print_tables

WIDTH = 250  # characters; the widest table's rows stay on one line
_PRINTERS: dict[str, Callable[[Any, Console], None]] = {
    "transforms": lambda content, console: transforms.print_tables(content["tasks"], console),
    "sketch": probe_accuracy.print_tables,
    "overhead": overhead.print_tables,
    "stream": stream.print_table,
    "calibration": calibration.print_tables,
    "triggers": lambda content, console: print_tables(which_trigger, content["tasks"], console),
    "ablation": lambda content, console: print_tables(parts, content["tasks"], console),
}


def write(results: Results, output: Path) -> None:
    """Writes the page to `output`, and pictures of the triggers beside it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    print_gaps(results, console)
    console.print(Markdown(readme.block(results)))
    for name, race in results.races.items():
        console.rule(name)
        print_race(race, console, wide=True)
        ladders = {next(iter(race["levels"])): race["ladder"], **race.get("ladders", {})}
        for level, climbed in ladders.items():
            console.print(ladder_table(level, climbed, race["metric"]))
        for picture in (f"{name}.png", f"{name}-run.png"):
            _link(console, results.folder / picture, output)
        console.print("Environment:", race.get("environment"))
    for name, content in results.others.items():
        console.rule(name)
        _other(console, name, content)
        if name == "triggers":
            _fields(console, content, output)
    console.save_html(str(output))


def print_gaps(results: Results, console: Console) -> None:
    """Says which results are not there, or cannot be read."""
    for name, why in results.unreadable.items():
        console.print(f"{name}.json could not be read: {why}", style="red")
    if results.missing:
        console.print(f"Not there yet: {', '.join(results.missing)}.", style="red")


def _other(console: Console, name: str, content: Any) -> None:
    """The tables of a measurement; JSON that no printer knows is shown as it is."""
    if name in _PRINTERS:
        try:
            return _PRINTERS[name](content, console)
        except (KeyError, TypeError) as error:
            console.print(f"{name}.json is not as this revision writes it: {error!r}.", style="red")
    console.print_json(data=content)


def _fields(console: Console, content: Mapping[str, Any], output: Path) -> None:
    for task, table in content["tasks"].items():
        if "claim" in table["levels"]:
            path = output.with_name(f"field-{task}.png")
            figure = field.draw(task, table, "claim")
            with plt.rc_context(field.STYLE):
                figure.savefig(path, dpi=110)
            plt.close(figure)
            _link(console, path, output)


def _link(console: Console, path: Path, page: Path) -> None:
    if path.exists():
        target = Path(os.path.relpath(path, page.parent)).as_posix()
        console.print(f"Picture: [link={target}]{path.name}[/link]")
    else:
        console.print(f"No picture: {path.name} is missing.", style="red")
