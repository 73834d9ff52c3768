"""What all commands share: the console, a progress bar, tables and lists of names."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

# In a log file the tables keep the width that a terminal would give them.
console = Console(width=None if sys.stdout.isatty() else 160)
QUIET = 20.0  # seconds from one line of progress to the next, where there is no bar


@contextlib.contextmanager
def progress_bar(name: str, total: int):
    """Yields two functions: one announces what begins, the other counts finished steps."""
    if not console.is_terminal:
        yield _progress_lines(name, total)
        return
    with Progress(console=console, transient=True) as shown:
        bar = shown.add_task(name, total=total)
        yield lambda text: shown.update(bar, description=text), lambda n: shown.advance(bar, n)


def _progress_lines(name: str, total: int):
    began = said = time.monotonic()
    done, doing = 0, ""

    def announce(text: str) -> None:
        nonlocal doing
        doing = text
        if done >= total:
            console.print(f"{name}: {text}")

    def advance(steps: int) -> None:
        nonlocal done, said
        done, now = done + steps, time.monotonic()
        if now - said >= QUIET or done >= total:
            said, left = now, (now - began) * (total / done - 1)
            times = f"{now - began:.0f} s so far, about {left:.0f} s left"
            console.print(f"{name}: {done / total:.0%}, {doing}; {times}")

    return announce, advance


def table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]] = (), left: int = 1,
    wrap: bool = False,
) -> Table:  # fmt: skip
    """A table whose first `left` columns hold words, the others figures.

    Names and figures stay on one line, unless `wrap` allows a wide table to break them.
    """
    shown = Table(title=title, title_justify="left", header_style="bold")
    for index, heading in enumerate(headings):
        side = "left" if index < left else "right"
        one_line = not wrap and (index == 0 or index >= left)
        shown.add_column(heading, justify=side, overflow="fold", no_wrap=one_line)
    for row in rows:
        shown.add_row(*row)
    return shown


def figures(
    title: str, rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str | Callable[[Mapping[str, Any]], str]], left: int = 1,
    caption: str | None = None, styles: Sequence[str | None] | None = None,
) -> Table:  # fmt: skip
    """A table of figures by name: a column is a format such as "{bias:+.1%}", or a function."""
    shown = table(title, list(columns), left=left)
    shown.caption = caption
    for row, style in zip(rows, styles or [None] * len(rows), strict=True):
        cells = (c.format_map(row) if isinstance(c, str) else c(row) for c in columns.values())
        shown.add_row(*cells, style=style)
    return shown


def names_in(given: str | None, known: Sequence[str], what: str) -> list[str]:
    """The names of a comma-separated list, all that are known by default."""
    if given is None:
        return list(known)
    asked = [name.strip() for name in given.split(",") if name.strip()]
    for name in asked or [""]:
        if name not in known:
            raise click.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}")
    return asked
