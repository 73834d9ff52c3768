"""Pictures of the page, each a data URI, so that the page is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.race.picture import COLORS, INK, STYLE, plain_ticks
from benchmarks.report import field as field_picture
from benchmarks.report.text import known

AVERAGED = "_averaged"
# A fixed salt, and no date: the same results give the same page.
_SVG: dict[Any, Any] = {"svg.hashsalt": "results", "svg.fonttype": "none"}


def picture(path: Path) -> str:
    """A PNG as a data URI."""
    return _uri("image/png", path.read_bytes())


def field(name: str, table: Mapping[str, Any], level: str) -> str:
    """Signals of a task and its oracle, as SVG in a data URI."""
    with plt.rc_context({**STYLE, **_SVG}):
        return _drawn(field_picture.draw(name, table, level))


def ladder(climbed: Mapping[str, Any], metric: str) -> str:
    """Steps over the reference's own at a row of targets, as SVG in a data URI."""
    targets = known(climbed["targets"])
    with plt.rc_context({**STYLE, **_SVG}):
        figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
        for name, values in climbed["ratios"].items():
            ratios = known(values)
            axis.plot(targets, np.where(np.isfinite(ratios), ratios, np.nan), **line(name))
        axis.axhline(1, color=INK, lw=0.8, ls=":")
        axis.set(xscale="log", xlabel=f"target ({metric}), harder to the right", ylim=(0, 1.6))
        axis.set_ylabel("steps / the reference's own")
        if len(targets) > 1:
            axis.set_xlim(targets[0], targets[-1])
        plain_ticks(axis.xaxis, targets[0] / targets[-1])
        figure.legend(loc="outside right upper", fontsize=7, labelcolor=INK)
        return _drawn(figure)


def _drawn(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return _uri("image/svg+xml", buffer.getvalue())


def line(name: str) -> dict[str, Any]:
    """The line of a method, also of one that is no longer registered."""
    ours = name.startswith("fgo")
    return {
        "label": name,
        "color": COLORS.get(name.removesuffix(AVERAGED), INK),
        "lw": 2.2 if ours else 1.2,
        "ls": (0, (4, 1.6)) if name.endswith(AVERAGED) else "-",
        "marker": "o",
        "ms": 2.5,
        "zorder": 4 if ours else 3,
    }


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
