"""The pictures of a race: steps to each level, from its results alone, and one phased run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

import fgo_jax as fgo
from benchmarks import statistics
from benchmarks.race.hold import Entry
from benchmarks.report.text import known
from benchmarks.runs.timing import PHASES
from benchmarks.runs.training import Curves

# The methods that the claim compares. Inks of Okabe and Ito: any eyes tell them apart.
INK, QUIET, RULE = "#22262b", "#5f6670", "#d9dde3"
OURS, ALONE = "#d55e00", "#0072b2"
SHOWN = {
    "constant": ("Adam, last weights", INK, "o"),
    "natural_gradient": ("the base, last weights", ALONE, "o"),
    "natural_gradient_averaged": ("the base, averaged", ALONE, "D"),
    "fgo": ("FGO, last weights", OURS, "o"),
    "fgo_averaged": ("FGO, averaged", OURS, "D"),
}
GLYPHS = {"o": "●", "D": "◆"}  # of the marks, in text
# What each level is: whose last loss, in the main.
LEVELS = {
    "fixed": "fixed target\nof", "constant": "Adam\nends at", "cosine": "Adam, cosine,\nends at",
    "claim": "the base\nends at", "late": "the base, averaged,\nends at",
    "horizon": "best schedule\nends at",
}  # fmt: skip
PHASE_TINTS = ("#fdf1dc", "#e2eefb", "#e4f4e8")
PHASE_INKS = ("#b26a00", "#1f63b5", "#2c7a44")
SIGNAL_INK = "#7a5195"
DASHES = (0, (4, 1.6))  # of averaged weights
UNITS = {"validation cross-entropy": "nats"}
# What the triggers read, what they could, and what the rate of execution follows.
SIGNALS = ("intrinsic_dimension", "agreement", "energy_rank", "energy_exponent")
STYLE: dict[Any, Any] = {
    "font.size": 9, "legend.frameon": False, "legend.labelcolor": INK,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlecolor": INK, "axes.labelcolor": INK, "xtick.color": QUIET, "ytick.color": QUIET,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": RULE,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eef0f3", "grid.linewidth": 0.8,
}  # fmt: skip


def draw(race: Mapping[str, Any], path: Path) -> None:
    """Steps to every level, and over those of the base, of the methods that matter.

    `race` is what TASK.json holds, so a picture is drawn again without racing.
    """
    # Two levels of one target differ in what ratios are taken to.
    levels = {level["target"]: (name, level) for name, level in reversed(race["levels"].items())}
    rows = [levels[target] for target in sorted(levels)]
    with plt.rc_context(STYLE):
        figure, (dots, rungs) = plt.subplots(
            2, 1, figsize=(8, 4.4 + 0.75 * len(rows)), layout="constrained",
            height_ratios=[0.4 + 0.75 * len(rows), 2.2],
        )  # fmt: skip
        _levels(dots, race, rows)
        _ladder(rungs, race)
        # Below the axes: inside, names would hide what they name.
        figure.legend(*dots.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        if not race["evidence"]:
            figure.suptitle("A quick look, no evidence", color=OURS, x=0.99, ha="right")
        _save(figure, path)


def draw_run(entry: Entry, path: Path) -> None:
    """Loss, rate, and the signals that decided in the first run of a phased method."""
    seed, run = next(iter(entry.runs.items()))
    validation = statistics.smooth(getattr(run, entry.method.weights), entry.task.smoothing)
    title = f"One run of {entry.method.name} on {entry.task.name} (seed {seed})"
    signals = [name for name in SIGNALS if name in run.telemetry]
    told = {**run.telemetry, "loss": run.train, "validation": validation}
    figure = fgo.plotting.run(told, signals=signals, title=title)
    figure.axes[0].set_ylabel(f"loss\n[{UNITS.get(entry.task.metric, 'no unit')}]", fontsize=9)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100, facecolor="white", pil_kwargs={"optimize": True})
    plt.close(figure)


def _levels(axis: Any, race: Mapping[str, Any], rows: list[tuple[str, Mapping[str, Any]]]) -> None:
    """A row for each level, the hardest at the bottom, and in it a line for each method."""
    horizon, named = race["num_steps"], set()
    for place, (_, level) in enumerate(rows):
        shown = [name for name in SHOWN if name in level["methods"]]
        for name, offset in zip(shown, np.linspace(0.32, -0.32, len(shown)), strict=True):
            (label, ink, mark), row = SHOWN[name], level["methods"][name]
            values, at = known(row["steps"]["values"]), place + (offset if len(shown) > 1 else 0)
            low, middle, high = (known([row["steps"][k]])[0] for k in ("low", "median", "high"))
            axis.plot(values, np.full(len(values), at), "|", color=ink, alpha=0.45, ms=6)
            if np.isfinite(low):
                axis.plot([low, min(high, horizon)], [at, at], color=ink, lw=1.6)
            axis.plot(middle if np.isfinite(middle) else np.nan, at, mark, color=ink, ms=7,
                      mec="white", label="" if name in named else label, zorder=4)  # fmt: skip
            named.add(name)
            text = f"{GLYPHS[mark]} {np.isfinite(values).sum()} of {len(values)}"
            axis.annotate(text, (1.01, at), xycoords=("axes fraction", "data"), color=ink,
                          va="center", annotation_clip=False)  # fmt: skip
        if place:
            axis.axhline(place - 0.5, color=RULE, lw=1.0)
    targets = [level["target"] for _, level in rows]
    digits = next(d for d in range(3, 9) if len({f"{t:.{d}g}" for t in targets}) == len(rows))
    ticks = [f"{LEVELS.get(name, name)} {level['target']:.{digits}g}" for name, level in rows]
    axis.set_yticks(range(len(rows)), ticks)
    axis.grid(visible=False, axis="y")
    axis.set(xlim=(0, 1.02 * horizon), ylim=(-0.5, len(rows) - 0.5))
    axis.set(xlabel="steps (updates made); thin marks: single seeds; base: kronecker_fisher alone",
             ylabel=f"level: {_metric(race)}")  # fmt: skip
    axis.set_title(f"{race['task']}: steps to each level, 95 % intervals")
    axis.annotate("seeds\nthat get there", (1.01, 1.0), xycoords="axes fraction", color=QUIET,
                  va="bottom", annotation_clip=False)  # fmt: skip


def _ladder(axis: Any, race: Mapping[str, Any]) -> None:
    """Steps relative to the reference at every target, not only at those of the tables."""
    climbed = race.get("ladders", {}).get("claim", race["ladder"])
    targets, top = climbed["targets"], 1.2
    references = climbed.get("references", {"raw": climbed["reference"]}).values()
    for name, ratios in climbed["ratios"].items():
        if name in SHOWN and name not in references:
            _, ink, mark = SHOWN[name]
            reached = np.where(np.isfinite(known(ratios)), known(ratios), np.nan)
            axis.plot(targets, reached, color=ink, marker=mark, ms=6, mec="white", lw=1.6,
                      clip_on=False)  # fmt: skip
            top = max(top, np.nanmax(reached, initial=0))
    axis.axhline(1, color=QUIET, lw=1.0)
    axis.set(xscale="log", xlabel=f"target: {_metric(race)}, harder to the right",
             ylim=(0, 1.08 * top), ylabel="steps [ratio]")  # fmt: skip
    whose = SHOWN.get(climbed["reference"], (climbed["reference"],))[0].partition(",")[0]
    same = " with the same weights" if len(set(references)) > 1 else ""
    axis.set_title(f"Ratio to the steps of {whose}{same}")
    if len(targets) > 1:
        axis.set_xlim(targets[0], targets[-1])
    plain_ticks(axis.xaxis, targets[-1], targets[0])


def _metric(race: Mapping[str, Any]) -> str:
    return f"{race['metric']} [{UNITS.get(race['metric'], 'no unit')}]"


def spans(run: Curves) -> list[tuple[int, float, float]]:
    """(phase, from step, to step) of each stretch."""
    starts = [run.telemetry[f"started/{phase}"][-1] for phase in PHASES]
    begun = sorted((start, index) for index, start in enumerate(starts) if start >= 0)
    ends = [start for start, _ in begun[1:]] + [float(run.steps[-1])]
    return [(index, start, end) for (start, index), end in zip(begun, ends, strict=True)]


def shade(axis: Any, run: Curves) -> None:
    for number, (phase, begin, end) in enumerate(spans(run)):
        axis.axvspan(begin, end, color=PHASE_TINTS[phase], lw=0, zorder=0)
        if number:
            axis.axvline(begin, color=PHASE_INKS[phase], lw=1.1, zorder=2)


def plain_ticks(axis: Any, low: float, high: float) -> None:
    """Round numbers, where powers of ten alone would say too little."""
    if high < 1e3 * low:
        evenly = MaxNLocator(6, steps=[1, 2, 5, 10])
        axis.set_major_locator(evenly if high < 10 * low else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
