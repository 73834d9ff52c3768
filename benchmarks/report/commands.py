"""python -m benchmarks report."""

from pathlib import Path

import click

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
def report_all(results, output, readme_path) -> None:
    """All results on one page, and on request the tables of benchmarks/README.md."""
    found = read(results)
    page.write(found, output)
    page.print_gaps(found, console)
    console.print(f"Wrote {output}")
    if readme_path is not None:
        readme_path.write_text(readme.rewritten(readme_path.read_text(), found))
        console.print(f"Wrote {readme_path}")
