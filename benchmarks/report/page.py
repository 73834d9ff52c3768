"""python -m benchmarks report: what the terminal would print, on one page, pictures beside it."""

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import matplotlib.pyplot as plt
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.measurements import memory, overhead, probe_accuracy, scaling, stream
from benchmarks.measurements.calibration import tables as calibration
from benchmarks.race import picture
from benchmarks.report import field, readme
from benchmarks.report.claims import CLAIM_TASKS
from benchmarks.report.race_tables import ladder_table, print_race
from benchmarks.runs.store import RESULTS
from benchmarks.studies import parts, transforms, which_trigger
from benchmarks.studies.study import print_tables
from benchmarks.terminal import console as terminal

MEASUREMENTS = ("transforms", "sketch", "overhead", "stream", "calibration", "triggers", "ablation")
WIDTH = 300  # characters; the widest table's rows stay on one line
_PRINTERS: dict[str, Callable[[Any, Console], None]] = {
    "transforms": lambda content, console: transforms.print_tables(content["tasks"], console),
    "sketch": probe_accuracy.print_tables, "overhead": overhead.print_tables,
    "stream": stream.print_table, "calibration": calibration.print_tables,
    "memory": memory.print_table, "scaling": scaling.print_tables,
    "triggers": lambda content, console: print_tables(which_trigger, content["tasks"], console),
    "ablation": lambda content, console: print_tables(parts, content["tasks"], console),
}  # fmt: skip


class Results(NamedTuple):
    """What a folder holds."""

    folder: Path  # where the pictures of the races lie too
    races: Mapping[str, Any] = {}  # by task, as `benchmarks.race.outcome` gave them
    others: Mapping[str, Any] = {}  # every other JSON, by the name of its file
    unreadable: Mapping[str, str] = {}  # what is no JSON, and why
    missing: tuple[str, ...] = ()  # what a full set of results would hold besides


def read(folder: Path) -> Results:
    """Reads every JSON of `folder`, but not of folders inside it."""
    races, others, unreadable = {}, {}, {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            unreadable[path.stem] = str(error)
            continue
        is_race = isinstance(content, dict) and {"task", "levels", "step_times"} <= set(content)
        (races if is_race else others)[path.stem] = content
    # The claim's tasks first, in their order.
    names = [*(name for name in CLAIM_TASKS if name in races), *races]
    wanted = (*CLAIM_TASKS, *MEASUREMENTS)
    missing = tuple(name for name in wanted if name not in {*races, *others})
    return Results(folder, {name: races[name] for name in names}, others, unreadable, missing)


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
        for drawn in (f"{name}.png", f"{name}-run.png"):
            _link(console, results.folder / drawn, output)
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


_FILE = click.Path(path_type=Path, dir_okay=False, writable=True)
_THERE = click.Path(path_type=Path, exists=True)


@click.command("report")
@click.option("--results", type=_THERE, default=RESULTS)
@click.option("--output", type=_FILE, default=Path("runs") / "report.html", show_default=True)
@click.option("--readme", "readme_path", type=_THERE, help="Rewrite the tables in this file.")
@click.option("--pictures", is_flag=True, help="Draw the races' pictures anew, beside their JSON.")
def report_all(results, output, readme_path, pictures) -> None:
    """All results on one page, and on request the tables of benchmarks/README.md."""
    found = read(results)
    for name, race in found.races.items() if pictures else ():
        picture.draw(race, results / f"{name}.png")
    write(found, output)
    print_gaps(found, terminal)
    terminal.print(f"Wrote {output}")
    if readme_path is not None:
        readme_path.write_text(readme.rewritten(readme_path.read_text(), found))
        terminal.print(f"Wrote {readme_path}")
