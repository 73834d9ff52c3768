"""python -m benchmarks report."""

from pathlib import Path

import click

from benchmarks.race import picture
from benchmarks.report import page, readme
from benchmarks.report.reading import read
from benchmarks.runs.store import RESULTS
from benchmarks.terminal import console

_FILE = click.Path(path_type=Path, dir_okay=False)
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
    page.write(found, output)
    page.print_gaps(found, console)
    console.print(f"Wrote {output}")
    if readme_path is not None:
        readme_path.write_text(readme.rewritten(readme_path.read_text(), found))
        console.print(f"Wrote {readme_path}")
