"""A table for the terminal, from rows of figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

Cell = str | Callable[[Mapping[str, Any]], str]


def table(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Cell],
    left: int = 1,
    caption: str | None = None,
    styles: Sequence[str | None] | None = None,
) -> Table:
    """One line for each row; all but the first `left` columns are right-aligned.

    Args:
      title: printed above the table.
      rows: figures by name.
      columns: by heading, a format such as "{bias:+.1%}", or a function of the row.
      left: how many columns hold names.
      caption: printed below the table.
      styles: one for each row.
    """
    made = Table(title=title, title_justify="left", header_style="bold", caption=caption)
    for index, heading in enumerate(columns):
        is_name = index < left
        made.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name)
    for row, style in zip(rows, styles or [None] * len(rows), strict=True):
        cells = (c.format_map(row) if isinstance(c, str) else c(row) for c in columns.values())
        made.add_row(*cells, style=style)
    return made
