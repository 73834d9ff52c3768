"""How long an analysis will take, said before it starts, and how far it is."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

# An analysis expected to take longer shows its progress by default.
_LONG = 10.0  # seconds
# Called with the number of products just done.
Advance = Callable[[int], object]


@contextlib.contextmanager
def shown(products: int, seconds: float, show: bool | None) -> Iterator[Advance]:
    """Prints to stderr how long a number of products will take, then the progress.

    Args:
      products: their total number.
      seconds: per product.
      show: None: only if it takes long.
    """
    expected = products * seconds
    if show is False or (show is None and expected < _LONG):
        yield lambda done: None
        return
    print(
        f"fgo.spectrum: {products} products in about {duration(expected)}, and the compiling.",
        file=sys.stderr,
        flush=True,
    )
    with contextlib.closing(_Bar(products)) as bar:
        yield bar.advance


def duration(seconds: float) -> str:
    """A duration for people."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1.0 else "a second"


class _Bar:
    """A rich or tqdm bar on a terminal, if installed; otherwise a line per quarter."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begin = total, 0, time.monotonic()
        self.advance, self.close = self._bar() or (self._line, lambda: None)

    def _bar(self) -> tuple[Advance, Callable[[], Any]] | None:
        if not sys.stderr.isatty():
            return None
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import Progress

            progress = Progress(console=Console(stderr=True), transient=True)
            task = progress.add_task("fgo.spectrum", total=self.total)
            progress.start()
            return lambda done: progress.advance(task, done), progress.stop
        with contextlib.suppress(ImportError):
            from tqdm import tqdm  # pyright: ignore[reportMissingModuleSource]

            bar = tqdm(total=self.total, desc="fgo.spectrum", unit="product", leave=False)
            return bar.update, bar.close
        return None

    def _line(self, done: int) -> None:
        before, self.done = self.done, self.done + done
        if 4 * self.done // self.total > 4 * before // self.total:
            share, passed = self.done / self.total, duration(time.monotonic() - self.begin)
            print(f"fgo.spectrum: {share:.0%} after {passed}", file=sys.stderr, flush=True)
