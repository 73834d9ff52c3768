"""The lowest panel of a run's picture: what each condition that ends a phase said."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgo_jax.analysis.plotting import canvas
from fgo_jax.analysis.plotting.record import Record
from fgo_jax.triggers.naming import in_words

_VERDICTS = {
    1: ("holds", canvas.BLUE),
    -1: ("does not hold", canvas.ORANGE),
    0: ("not known yet", "#b4b9c1"),
}


def listed(record: Record) -> list[tuple[str, str]]:
    """(phase, condition) of the phases that ran."""
    ran = list(dict.fromkeys(stretch.phase for stretch in record.stretches))
    keys = [name.split("/", 2)[1:] for name in record.numbers if name.startswith("condition/")]
    return sorted(
        ((p, c) for p, c in keys if p in ran), key=lambda row: (ran.index(row[0]), row[1])
    )


def draw(axis: Any, record: Record, rows: list[tuple[str, str]]) -> None:
    """Draws a bar per condition while its phase ran, its name, and its last verdict."""
    after, before = record.steps, np.append(record.steps[0], record.steps[:-1])
    for place, (phase, condition) in enumerate(rows):
        verdicts = record.numbers[f"condition/{phase}/{condition}"]
        for _, begin, end, _ in (one for one in record.stretches if one.phase == phase):
            # A record of every few steps may hold a transition between two of them.
            inside = (after > begin) & (before < end)
            for verdict, (_, color) in _VERDICTS.items():
                held = _runs(inside & (verdicts == verdict))
                edges = [(max(before[a], begin), min(after[b], end)) for a, b in held]
                bars = [(a, b - a) for a, b in edges]
                axis.broken_barh(bars, (-place - 0.42, 0.32), color=color, lw=0)
            # A condition keeps its last verdict after its phase.
            color = _VERDICTS[int(verdicts[np.searchsorted(after, end)])][1]
            mark = {"color": color, "mec": "white", "ms": 8, "clip_on": False, "zorder": 4}
            axis.plot(end, -place - 0.26, "D", **mark)
        bound = record.numbers.get(f"bound/{phase}/{condition}", np.full(1, np.nan))[-1]
        words = in_words(condition, bound)
        # On a white box: transition lines would cross the text.
        ground = {"fc": "white", "alpha": 0.9, "lw": 0, "pad": 0.6}
        axis.annotate(f"{phase}: {words}", (0.008, -place - 0.03), fontsize=9, va="bottom",
                      xycoords=("axes fraction", "data"), bbox=ground)  # fmt: skip
    axis.set_ylim(0.45 - len(rows), 0.55)
    axis.set_yticks([])
    axis.set_ylabel("conditions to\nend a phase", fontsize=9)
    plt = canvas.pyplot()
    handles = [plt.Rectangle((0, 0), 1, 1, color=c, label=word) for word, c in _VERDICTS.values()]
    last = {"marker": "D", "ls": "", "mec": "white", "ms": 8, "label": "when the phase ended"}
    handles.append(plt.Line2D([], [], color=canvas.QUIET, **last))
    # Above the axes, where it hides no bar.
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0, "ncols": 4}
    axis.legend(handles=handles, fontsize=9, frameon=False, **above)


def _runs(held: np.ndarray) -> list[tuple[int, int]]:
    """The first and the last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], held.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2] - 1, strict=True))
