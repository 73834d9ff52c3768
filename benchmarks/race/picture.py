"""The picture of a race: every method's validation curve, and the story of one phased run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from benchmarks import statistics as evidence
from benchmarks.race.hold import Race, hits, ladder
from benchmarks.runs.timing import PHASES
from benchmarks.runs.training import Curves

INK, QUIET, RULE = "#22262b", "#6b7280", "#d9dde3"
PHASE_TINTS = ("#fdf1dc", "#e2eefb", "#e4f4e8")
# What the triggers read, what they could, and what the rate of execution follows.
SHOWN = ("intrinsic_dimension", "agreement", "energy_rank", "energy_exponent")
PHASE_INKS = ("#b26a00", "#1f63b5", "#2c7a44")
# One hue a family; averaged siblings are dashed.
COLORS = {
    "constant": "#8a8f98",
    "two_step": "#b08968",
    "cosine": "#7a5195",
    "wsd_linear": "#a77fc2",
    "wsd_1_minus_sqrt": "#c3a5d6",
    "1_over_sqrt_t": "#5b8c85",
    "reduce_on_plateau": "#8c6d62",
    "schedule_free": "#c9a227",
    "sgd_momentum": "#3b3f46",
    "natural_gradient": "#1f77b4",
    "natural_gradient_1_over_t": "#17a2b8",
    "natural_gradient_1_over_sqrt_t": "#2e9e5b",
    "natural_gradient_two_step": "#e08e0b",
    "natural_gradient_cosine": "#4b3f9e",
    "natural_gradient_wsd_1_minus_sqrt": "#8f86d8",
    "muon": "#6b8e23",
    "shampoo_power": "#c06c9f",
    "fgo": "#d62839",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eef0f3",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
}


def draw(race: Race, path: Path) -> None:
    """Writes the picture to `path`."""
    phased = _phased_run(race)
    with plt.rc_context(STYLE):
        if phased is None:
            figure = plt.figure(figsize=(9, 7.6), layout="constrained")
            _panels(figure, race)
        else:
            figure = plt.figure(figsize=(14.5, 7.6), layout="constrained")
            halves: Any = figure.subfigures(1, 2, width_ratios=(1.05, 1), wspace=0.03)
            left, right = halves
            _panels(left, race)
            _story(right, race, phased)
        if not race.evidence:
            figure.suptitle(
                "A quick look, no evidence", color="#d62839", fontsize=9, x=0.99, ha="right"
            )
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def _phased_run(race: Race) -> Curves | None:
    """The phased run of the first seed."""
    for entry in race.entries[race.levels[0].name].values():
        if entry.method.phased:
            return next(iter(entry.runs.values()))
    return None


def _panels(figure, race: Race) -> None:
    curves, rungs = figure.subplots(2, 1, height_ratios=[3, 1])
    _comparison(curves, race)
    _ladder(rungs, race)
    figure.align_ylabels([curves, rungs])
    # Below the axes: a dozen names inside would hide the curves that they name.
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  fontsize=7, labelcolor=INK, handlelength=2.2, columnspacing=1.0)  # fmt: skip


def _ladder(axis, race: Race) -> None:
    """Steps relative to the reference at every target, not only at the one of the table."""
    climbed = ladder(race, race.levels[0])
    targets = climbed["targets"]
    for name, ratios in climbed["ratios"].items():
        entry = race.entries[race.levels[0].name][name]
        reached = np.where(np.isfinite(ratios), ratios, np.nan)
        axis.plot(targets, reached, **_line(entry.method))
    for level in race.levels:
        axis.axvline(level.target, color=QUIET, lw=0.9, ls=":", zorder=2)
    axis.set(xscale="log", xlabel=f"target ({race.task.metric})", ylim=(0, 1.6))
    axis.set_ylabel(f"steps / {climbed['reference']}'s")
    if len(targets) > 1:
        axis.set_xlim(targets[0], targets[-1])  # harder targets to the right
    plain_ticks(axis.xaxis, targets[0] / targets[-1])


def _line(method) -> dict:
    averaged, ours = method.weights == "averaged", method.phased
    return {
        "color": COLORS.get(method.trajectory, INK),
        "lw": 2.2 if ours else 1.3,
        "ls": (0, (4, 1.6)) if averaged else "-",
        "zorder": 4 if ours else 3,
    }


def _comparison(axis, race: Race) -> None:
    task, level = race.task, race.levels[0]
    drawn, targets = [], [lv.target for lv in race.levels]
    for name, entry in race.entries[level.name].items():
        curves = np.stack(
            [
                evidence.smooth(getattr(c, entry.method.weights), task.smoothing)
                for c in entry.runs.values()
            ]
        )
        steps = next(iter(entry.runs.values())).steps
        # A median and not a mean: one failed seed should not draw the line.
        median = np.median(curves, axis=0)
        ours, line = entry.method.phased, _line(entry.method)
        color = line["color"]
        axis.plot(steps, median, label=name, **line)
        if len(curves) > 1 and ours:
            axis.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.1, lw=0)
        reached = evidence.middle(hits(race, level, name))
        if np.isfinite(reached):
            axis.plot(reached, level.target, "o", color=color, ms=6, mec="white", mew=1.2, zorder=6)
        drawn.append(median)
    for lv in {lv.target: lv for lv in reversed(race.levels)}.values():
        axis.axhline(lv.target, color=QUIET, lw=0.9, ls=":", zorder=2)
        axis.annotate(
            f"target: {lv.name} {lv.target:.3g}",
            (0.005, lv.target),
            xycoords=("axes fraction", "data"),
            ha="left",
            va="bottom",
            fontsize=7.5,
            color=QUIET,
        )
    _log_limits(axis, np.concatenate(drawn), targets)
    counts = sorted({len(entry.runs) for entry in race.entries[level.name].values()})
    seeds = " or ".join(map(str, counts))
    axis.set(xlim=(0, task.num_steps), xlabel="step", ylabel=task.metric)
    axis.set_title(
        f"{task.name}: validation, median of {seeds} seed{'s' * (counts != [1])}; "
        "dots mark the median hit"
    )


def _story(figure, race: Race, run: Curves) -> None:
    """Loss, rate, and what decided about it in one run, over its phases."""
    task, telemetry = race.task, run.telemetry
    names = [name for name in SHOWN if name in telemetry]
    axes = figure.subplots(
        2 + len(names), 1, sharex=True, height_ratios=[1.5, 1] + [1] * len(names)
    )
    loss, rate = axes[0], axes[1]
    for axis in axes:
        _shade(axis, run)
    loss.plot(run.steps, run.train, color="#b9bec7", lw=0.9, label="training loss")
    loss.plot(
        run.steps,
        evidence.smooth(run.raw, task.smoothing),
        color=COLORS["fgo"],
        lw=1.6,
        label="validation, raw weights",
    )
    loss.plot(
        run.steps,
        evidence.smooth(run.averaged, task.smoothing),
        color=COLORS["fgo"],
        lw=1.6,
        ls=(0, (4, 1.6)),
        label="validation, averaged",
    )
    _log_limits(loss, np.concatenate([run.raw, run.averaged, run.train]), [])
    loss.legend(fontsize=7.5, loc="upper right", labelcolor=INK)
    loss.set_ylabel("loss")
    seed = (
        next(iter(race.entries[race.levels[0].name]["fgo"].runs))
        if "fgo" in race.entries[race.levels[0].name]
        else 0
    )
    loss.set_title(f"One run of fgo (seed {seed})", pad=28)
    rate.plot(run.steps, telemetry["learning_rate"], color=INK, lw=1.6)
    top = np.nanmax(telemetry["learning_rate"])
    # A law that ends at zero would stretch a log axis over decades of nothing.
    rate.set(ylabel="learning rate", yscale="log", ylim=(top / 300, top * 1.5))
    for axis, name in zip(axes[2:], names, strict=True):
        axis.plot(run.steps, telemetry[name], color="#7a5195", lw=1.4)
        error = telemetry.get(f"{name}_error")
        if error is not None:
            axis.fill_between(
                run.steps,
                telemetry[name] - error,
                telemetry[name] + error,
                color="#7a5195",
                alpha=0.15,
                lw=0,
            )
        axis.set_ylabel(name.replace("_", " "))
        axis.margins(y=0.12)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=name != "agreement"))
        if name == "energy_exponent":
            axis.set(ylim=(-0.3, 3.3))
            for value, word in ((0, "agree"), (1, "noise"), (2, "rest")):
                axis.axhline(value, color=QUIET, lw=0.8, ls=":")
                axis.text(1.005, value, word, transform=axis.get_yaxis_transform(),
                          va="center", fontsize=7, color=QUIET)  # fmt: skip
    axes[-1].set(xlabel="step", xlim=(0, task.num_steps))
    figure.align_ylabels(axes)
    _name_phases(loss, run, task.num_steps)


def _spans(run: Curves) -> list[tuple[int, float, float]]:
    """(phase, from step, to step) of each stretch."""
    starts = [run.telemetry[f"started/{index}"][-1] for index in range(len(PHASES))]
    begun = sorted((start, index) for index, start in enumerate(starts) if start >= 0)
    ends = [start for start, _ in begun[1:]] + [float(run.steps[-1])]
    return [(index, start, end) for (start, index), end in zip(begun, ends, strict=True)]


def _shade(axis, run: Curves) -> None:
    for number, (phase, begin, end) in enumerate(_spans(run)):
        axis.axvspan(begin, end, color=PHASE_TINTS[phase % 3], lw=0, zorder=0)
        if number:
            axis.axvline(begin, color=PHASE_INKS[phase % 3], lw=1.1, zorder=2)


def _name_phases(axis, run: Curves, num_steps: int) -> None:
    raised, before = False, -np.inf
    for phase, begin, end in _spans(run):
        # Names that begin close to each other stand on two lines.
        raised = not raised and begin - before < 0.2 * num_steps
        before = begin
        text = PHASES[phase].replace("reask", "re-ask") + (f" from {begin:.0f}" if begin else "")
        # A short phase's name starts at its edge and may run over; a long one's is centred.
        wide = (end - begin) / num_steps > 0.2
        axis.annotate(
            text,
            ((begin + end) / 2 if wide else begin, 1.11 if raised else 1.02),
            xycoords=("data", "axes fraction"),
            ha="center" if wide else "left",
            va="bottom",
            fontsize=8,
            color=PHASE_INKS[phase % 3],
            weight="bold",
        )


def _log_limits(axis, values: np.ndarray, targets: list[float]) -> None:
    """A log axis around what matters: a diverged run must not squash the others."""
    good = values[np.isfinite(values) & (values > 0)]
    if not len(good):
        return
    axis.set_yscale("log")
    low = min([good.min(), *targets])
    high = min(good.max(), 30 * np.median(good)) if targets else good.max()
    axis.set_ylim(low / 1.15, max(high, low * 1.5) * 1.1)
    plain_ticks(axis.yaxis, high / low)


def plain_ticks(axis, span: float) -> None:
    """1, 2, 5 within a decade or so, where powers of ten alone would say too little."""
    if span < 30:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
