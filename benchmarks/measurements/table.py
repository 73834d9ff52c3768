"""A table for the terminal, from rows of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table


def table(
    title: str,
    rows: Sequence[Mapping[str, str]],
    left: int = 1,
    caption: str | None = None,
    styles: Sequence[str | None] | None = None,
) -> Table:
    """One column for each key of the rows; all but the first `left` columns are right-aligned.

    Args:
      title: printed above the table.
      rows: cells by heading, in the same order in each row.
      left: how many columns hold names.
      caption: printed below the table.
      styles: one for each row.
    """
    made = Table(title=title, title_justify="left", header_style="bold", caption=caption)
    for index, heading in enumerate(rows[0] if rows else ()):
        is_name = index < left
        made.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name)
    for row, style in zip(rows, styles or [None] * len(rows), strict=True):
        made.add_row(*row.values(), style=style)
    return made
