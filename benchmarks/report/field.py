"""The picture of a study of triggers: the signals over training, next to what an oracle gets."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from benchmarks import statistics
from benchmarks.race import picture
from benchmarks.race.picture import DASHES, INK, PHASE_INKS, QUIET, SIGNAL_INK, STYLE
from benchmarks.report.text import known
from benchmarks.studies.which_trigger import DEFAULT, SHORTEST

READINGS, NAMES = {"raw": "-", "averaged": DASHES}, {"raw": "last", "averaged": "averaged"}
LENGTH_INKS = {1.0: INK, 0.25: "#e69f00", 4.0: picture.ALONE}
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
        figure = plt.figure(figsize=(7.4 if signals else 4.2, 5.4), layout="constrained")
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
        _name(right, axes[0])
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
            words = f"median, {NAMES[weights]}"
            axis.fill_between(steps, low, high, fc=SIGNAL_INK, alpha=0.18, lw=0, label="quartiles")
            axis.plot(steps, middle, color=SIGNAL_INK, lw=1.4, ls=dashes, label=words)
            began = table["levels"][level][weights]["rows"][DEFAULT]["started"]
            for index, started in enumerate(began, start=1):
                at = statistics.middle(known(started))
                if np.isfinite(at):
                    words = ("", "re-ask begins", "execution begins")[index]
                    axis.axvline(at, color=PHASE_INKS[index], lw=1.1, ls=dashes, label=words)
        axis.set_ylabel(LABELS.get(signal, signal.replace("_", " ")))
        axis.margins(y=0.12)
        if signal == "trace":
            axis.set_yscale("log")
            picture.plain_ticks(axis.yaxis, *axis.get_ylim())
        else:
            # An estimate of an agreement may be negative.
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]) if signal == "agreement" else 0)
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=signal != "agreement"))
    axes[0].set_title(f"{name}: what was measured")
    _name(figure, axes[0])
    _steps(axes[-1])
    axes[-1].set_xlabel("step (updates made)")
    figure.align_ylabels(axes)


def _name(figure, axis) -> None:
    """A legend below, each name once."""
    handles, names = axis.get_legend_handles_labels()
    once = {name: handles[names.index(name)] for name in names}
    figure.legend(once.values(), once, loc="outside lower center", ncols=2)


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
    for place, ((length, longer), points) in enumerate(sorted(lines.items())):
        at, ratios = np.asarray(sorted(points)).T
        wide = 1.2 + 1.1 * (len(lines) - 1 - place)  # where curves meet, all are seen
        words = "own decay" if length == 1 else f"decay x {length:g}"
        axis.plot(
            at, np.minimum(ratios, TOP), marker="o", ms=wide + 2, lw=wide,
            color=LENGTH_INKS.get(length, QUIET), ls=":" if longer else "-",
            label=f"{words}, longer re-ask" if longer else words,
        )  # fmt: skip
    began = statistics.middle(known(reading["rows"][DEFAULT]["started"][0]))
    if np.isfinite(began):
        (default,) = known([reading["over_reference"]["default"]["median"]])
        axis.plot(began, min(default, TOP), "*", ms=13, color=picture.OURS, mec="white",
                  label="default triggers")  # fmt: skip
    axis.axhline(1, color=QUIET, lw=0.9, ls=":")
    # A level that is missed must be seen, too.
    axis.axhline(TOP, color=QUIET, lw=0.9, ls=":")
    axis.set_yticks((0, 0.5, 1, TOP), ("0", "0.5", "1", f"missed, or\nabove {TOP:g}"))
    axis.set(ylabel="steps [ratio\nto the base's]", ylim=(0, 1.08 * TOP))
    _steps(axis)
    axis.set_title(f"steps to the level, {NAMES[weights]} weights", fontsize=9)


def _finite(values) -> np.ndarray:
    values = known(values)
    return np.where(np.isfinite(values), values, np.nan)
