"""The console, the progress bars and the lists of names that all commands share."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

# In a log file the tables keep the width that a terminal would give them.
console = Console(width=None if sys.stdout.isatty() else 150)


def bars() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def reporters(progress: Progress, bar):
    """The keyword arguments by which a long computation reports to a bar."""
    return {
        "announce": lambda text: progress.update(bar, description=text),
        "progress": lambda steps: progress.advance(bar, steps),
    }


def names_in(given: str | None, known: list[str], what: str) -> list[str]:
    if given is None:
        return known
    asked = [name.strip() for name in given.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise click.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}")
    return asked
