"""The picture of a study of triggers: the signals over training, next to what an oracle gets."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from benchmarks import statistics
from benchmarks.race.picture import (
    ALONE,
    DASHES,
    INK,
    OURS,
    PHASE_INKS,
    QUIET,
    SIGNAL_INK,
    STYLE,
    plain_ticks,
)
from benchmarks.report.text import known
from benchmarks.studies.which_trigger import DEFAULT, SHORTEST

READINGS = {"raw": "-", "averaged": DASHES}
LENGTH_INKS = {1.0: INK, 0.25: "#e69f00", 4.0: ALONE}
LABELS = {
    "intrinsic_dimension": "dimension\n[directions]", "energy_rank": "energy rank\n[eigenvalues]",
    "trace": "trace of noise\n[metric's unit]", "agreement": "agreement\n[share]",
}  # fmt: skip
TOP = 1.6  # of the ratios that are told apart


def draw(name: str, table: Mapping[str, Any], level: str, *, signals: bool = True) -> Figure:
    """Signals of the default's runs, and steps over the reference's for every point of the grid.

    `table` is what `triggers.json` holds of the task called `name`.
    """
    # Ticks are made when the figure is saved: whoever saves it keeps the style, too.
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(8.0 if signals else 4.4, 5.0), layout="constrained")
        right: Any = figure
        if signals:
            halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.1), wspace=0.02)
            left, right = halves
            _signals(left, name, table, level)
        else:
            figure.suptitle(name, weight="bold")
        axes = right.subplots(2, 1, sharex=True)
        for axis, weights in zip(axes, READINGS, strict=True):
            _oracle(axis, table, table["levels"][level][weights], weights)
        axes[-1].set_xlabel("re-ask begins at step")
        named = axes[0].get_legend_handles_labels()
        right.legend(*named, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _signals(figure, name: str, table: Mapping[str, Any], level: str) -> None:
    """Median over the seeds and quartiles; what the noise scale is, agreement says."""
    signals = [s for s in table["field"]["raw"] if s != "steps"]
    axes = figure.subplots(len(signals), 1, sharex=True)
    for axis, signal in zip(axes, signals, strict=True):
        for weights, dashes in READINGS.items():
            field = table["field"][weights]
            steps = field["steps"]
            low, middle, high = (_finite(field[signal][k]) for k in ("low", "median", "high"))
            axis.fill_between(steps, low, high, color=SIGNAL_INK, alpha=0.12, lw=0)
            axis.plot(steps, middle, color=SIGNAL_INK, lw=1.4, ls=dashes, label=weights)
            began = table["levels"][level][weights]["rows"][DEFAULT]["started"]
            for index, started in enumerate(began, start=1):
                at = statistics.middle(known(started))
                if np.isfinite(at):
                    axis.axvline(at, color=PHASE_INKS[index], lw=1.1, ls=dashes)
        axis.set_ylabel(LABELS.get(signal, signal.replace("_", " ")), fontsize=8)
        axis.margins(y=0.12)
        if signal == "trace":
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            plain_ticks(axis.yaxis, high / low)
        else:
            # An estimate of an agreement may be negative.
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]) if signal == "agreement" else 0)
            axis.yaxis.set_major_locator(MaxNLocator(4))
    axes[0].set_title(f"{name}: what was measured")
    axes[signals.index("energy_rank")].legend(fontsize=8, loc="lower right")
    _steps(axes[-1])
    axes[-1].set_xlabel("step; lines: re-ask and execution begin")
    figure.align_ylabels(axes)


def _steps(axis) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _oracle(axis, table: Mapping[str, Any], reading: Mapping[str, Any], weights: str) -> None:
    own = known(reading["reference"]["steps"]["values"])
    lines: dict[tuple[float, bool], list[tuple[float, float]]] = {}
    for row in reading["grid"].values():
        first, second = row["setting"]["first"], row["setting"]["second"]
        ratios = statistics.paired_ratios(known(row["steps"]["values"]), own, table["num_steps"])
        point = (first, statistics.middle(ratios))
        lines.setdefault((row["decay"], second - first > SHORTEST), []).append(point)
    for (length, longer), points in sorted(lines.items()):
        at, ratios = np.asarray(sorted(points)).T
        words = "own decay" if length == 1 else f"decay x {length:g}"
        axis.plot(
            at, np.minimum(ratios, TOP), marker="o", ms=3, lw=1.3,
            color=LENGTH_INKS.get(length, QUIET), ls=":" if longer else "-",
            label=f"{words}, longer re-ask" if longer else words,
        )  # fmt: skip
    began = statistics.middle(known(reading["rows"][DEFAULT]["started"][0]))
    if np.isfinite(began):
        (default,) = known([reading["over_reference"]["default"]["median"]])
        axis.plot(began, min(default, TOP), "*", ms=13, color=OURS, mec="white",
                  label="default triggers")  # fmt: skip
    axis.axhline(1, color=QUIET, lw=0.9, ls=":")
    # A level that is missed must be seen, too.
    axis.axhline(TOP, color=QUIET, lw=0.9, ls=":")
    axis.annotate("missed, or more", (0.01, TOP), xycoords=("axes fraction", "data"),
                  va="bottom", fontsize=8, color=QUIET)  # fmt: skip
    axis.set(ylabel="steps [ratio]", ylim=(0, 1.08 * TOP))
    _steps(axis)
    axis.set_title(f"steps over the refinement's, {weights} weights", fontsize=9)


def _finite(values) -> np.ndarray:
    values = known(values)
    return np.where(np.isfinite(values), values, np.nan)
