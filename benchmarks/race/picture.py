"""The picture of a race: every method's validation curve, and the story of one phased run."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from benchmarks import statistics
from benchmarks.race.hold import Entry, Race
from benchmarks.race.outcome import ladder
from benchmarks.runs.timing import PHASES
from benchmarks.runs.training import Curves

INK, QUIET, RULE = "#22262b", "#6b7280", "#d9dde3"
PHASE_TINTS = ("#fdf1dc", "#e2eefb", "#e4f4e8")
PHASE_INKS = ("#b26a00", "#1f63b5", "#2c7a44")
SIGNAL_INK = "#7a5195"
DASHES = (0, (4, 1.6))  # of averaged weights
# What the triggers read, what they could, and what the rate of execution follows.
SHOWN = ("intrinsic_dimension", "agreement", "energy_rank", "energy_exponent")
# One hue a family; averaged siblings are dashed.
COLORS = {
    "constant": "#8a8f98", "two_step": "#b08968", "cosine": "#7a5195", "wsd_linear": "#a77fc2",
    "wsd_1_minus_sqrt": "#c3a5d6", "1_over_sqrt_t": "#5b8c85", "reduce_on_plateau": "#8c6d62",
    "schedule_free": "#c9a227", "sgd_momentum": "#3b3f46", "natural_gradient": "#1f77b4",
    "natural_gradient_1_over_t": "#17a2b8", "natural_gradient_1_over_sqrt_t": "#2e9e5b",
    "natural_gradient_two_step": "#e08e0b", "natural_gradient_cosine": "#4b3f9e",
    "natural_gradient_wsd_1_minus_sqrt": "#8f86d8", "muon": "#6b8e23",
    "shampoo_power": "#c06c9f", "fgo": "#d62839",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 9, "legend.frameon": False, "legend.labelcolor": INK,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlecolor": INK, "axes.labelcolor": INK, "xtick.color": QUIET, "ytick.color": QUIET,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": RULE,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eef0f3", "grid.linewidth": 0.8,
}  # fmt: skip


def draw(race: Race, path: Path) -> None:
    """Writes the picture to `path`; the story is that of the first phased method's first seed."""
    first = race.entries[race.levels[0].name]
    phased = next((entry for entry in first.values() if entry.method.phased), None)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(14.5 if phased else 9, 7.6), layout="constrained")
        if phased is None:
            _panels(figure, race)
        else:
            halves: Any = figure.subfigures(1, 2, width_ratios=(1.05, 1), wspace=0.03)
            _panels(halves[0], race)
            _story(halves[1], phased)
        if not race.evidence:
            figure.suptitle(
                "A quick look, no evidence", color=COLORS["fgo"], fontsize=9, x=0.99, ha="right"
            )
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def _panels(figure, race: Race) -> None:
    curves, rungs = figure.subplots(2, 1, height_ratios=[3, 1])
    _comparison(curves, race)
    _ladder(rungs, race)
    figure.align_ylabels([curves, rungs])
    # Below the axes: a dozen names inside would hide the curves that they name.
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  fontsize=7, handlelength=2.2, columnspacing=1.0)  # fmt: skip


def _line(entry: Entry) -> dict[str, Any]:
    ours = entry.method.phased
    return {
        "color": COLORS.get(entry.method.trajectory, INK),
        "lw": 2.2 if ours else 1.3,
        "ls": DASHES if entry.method.weights == "averaged" else "-",
        "zorder": 4 if ours else 3,
    }


def _ladder(axis, race: Race) -> None:
    """Steps relative to the reference at every target, not only at the one of the table."""
    climbed = ladder(race, race.levels[0])
    targets = climbed["targets"]
    for name, ratios in climbed["ratios"].items():
        reached = np.where(np.isfinite(ratios), ratios, np.nan)
        axis.plot(targets, reached, **_line(race.entries[race.levels[0].name][name]))
    for level in race.levels:
        axis.axvline(level.target, color=QUIET, lw=0.9, ls=":", zorder=2)
    axis.set(xscale="log", xlabel=f"target ({race.task.metric})", ylim=(0, 1.6))
    axis.set_ylabel(f"steps / {climbed['reference']}'s")
    if len(targets) > 1:
        axis.set_xlim(targets[0], targets[-1])  # harder targets to the right
    _plain_ticks(axis.xaxis, targets[0] / targets[-1])


def _comparison(axis, race: Race) -> None:
    task, level, drawn = race.task, race.levels[0], []
    entries = race.entries[level.name]
    for name, entry in entries.items():
        runs, line = entry.curves(), _line(entry)
        curves = np.stack(
            [statistics.smooth(getattr(c, entry.method.weights), task.smoothing) for c in runs]
        )
        # A median and not a mean: one failed seed should not draw the line.
        drawn.append(np.median(curves, axis=0))
        axis.plot(runs[0].steps, drawn[-1], label=name, **line)
        if len(curves) > 1 and entry.method.phased:
            low, high, color = curves.min(0), curves.max(0), line["color"]
            axis.fill_between(runs[0].steps, low, high, color=color, alpha=0.1, lw=0)
        reached = statistics.middle(entry.hits(level.target))
        if np.isfinite(reached):
            axis.plot(reached, level.target, "o", color=line["color"], ms=6, mec="white", zorder=6)
    targets = {lv.target: lv.name for lv in reversed(race.levels)}
    for target, name in targets.items():
        axis.axhline(target, color=QUIET, lw=0.9, ls=":", zorder=2)
        axis.annotate(f"target: {name} {target:.3g}", (0.005, target), va="bottom", fontsize=7.5,
                      xycoords=("axes fraction", "data"), color=QUIET)  # fmt: skip
    _log_limits(axis, np.concatenate(drawn), list(targets))
    counts = sorted({len(entry.runs) for entry in entries.values()})
    seeds = f"{' or '.join(map(str, counts))} seed{'s' * (counts != [1])}"
    axis.set(xlim=(0, task.num_steps), xlabel="step", ylabel=task.metric)
    axis.set_title(f"{task.name}: validation, median of {seeds}; dots mark the median hit")


def _story(figure, entry: Entry) -> None:
    """Loss, rate, and the signals that decided in one run, over its phases."""
    task, (seed, run) = entry.task, next(iter(entry.runs.items()))
    telemetry, color = run.telemetry, COLORS["fgo"]
    names = [name for name in SHOWN if name in telemetry]
    heights = [1.5, 1] + [1] * len(names)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    loss, rate, *others = axes
    for axis in axes:
        shade(axis, run)
    loss.plot(run.steps, run.train, color="#b9bec7", lw=0.9, label="training loss")
    for weights, dashes in (("raw", "-"), ("averaged", DASHES)):
        values = statistics.smooth(getattr(run, weights), task.smoothing)
        label = f"validation, {weights} weights"
        loss.plot(run.steps, values, color=color, lw=1.6, ls=dashes, label=label)
    _log_limits(loss, np.concatenate([run.raw, run.averaged, run.train]), [])
    loss.legend(fontsize=7.5, loc="upper right")
    loss.set_ylabel("loss")
    loss.set_title(f"One run of {entry.method.name} (seed {seed})", pad=28)
    rate.plot(run.steps, telemetry["learning_rate"], color=INK, lw=1.6)
    top = np.nanmax(telemetry["learning_rate"])
    # A law that ends at zero would stretch a log axis over decades of nothing.
    rate.set(ylabel="learning rate", yscale="log", ylim=(top / 300, top * 1.5))
    for axis, name in zip(others, names, strict=True):
        values, error = telemetry[name], telemetry.get(f"{name}_error", np.nan)
        axis.plot(run.steps, values, color=SIGNAL_INK, lw=1.4)
        axis.fill_between(run.steps, values - error, values + error, color=SIGNAL_INK, alpha=0.15,
                          lw=0)  # fmt: skip
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


def spans(run: Curves) -> list[tuple[int, float, float]]:
    """(phase, from step, to step) of each stretch."""
    starts = [run.telemetry[f"started/{phase}"][-1] for phase in PHASES]
    begun = sorted((start, index) for index, start in enumerate(starts) if start >= 0)
    ends = [start for start, _ in begun[1:]] + [float(run.steps[-1])]
    return [(index, start, end) for (start, index), end in zip(begun, ends, strict=True)]


def shade(axis, run: Curves) -> None:
    for number, (phase, begin, end) in enumerate(spans(run)):
        axis.axvspan(begin, end, color=PHASE_TINTS[phase], lw=0, zorder=0)
        if number:
            axis.axvline(begin, color=PHASE_INKS[phase], lw=1.1, zorder=2)


def _name_phases(axis, run: Curves, num_steps: int) -> None:
    raised, before = False, -np.inf
    for phase, begin, end in spans(run):
        # Names that begin close to each other stand on two lines.
        raised = not raised and begin - before < 0.2 * num_steps
        before = begin
        text = PHASES[phase].replace("reask", "re-ask") + (f" from {begin:.0f}" if begin else "")
        # A short phase's name starts at its edge and may run over; a long one's is centred.
        wide = (end - begin) / num_steps > 0.2
        at = ((begin + end) / 2 if wide else begin, 1.11 if raised else 1.02)
        axis.annotate(text, at, xycoords=("data", "axes fraction"), va="bottom", fontsize=8,
                      ha="center" if wide else "left", color=PHASE_INKS[phase],
                      weight="bold")  # fmt: skip


def _log_limits(axis, values: np.ndarray, targets: list[float]) -> None:
    """A log axis around what matters: a diverged run must not squash the others."""
    good = values[np.isfinite(values) & (values > 0)]
    if not len(good):
        return
    axis.set_yscale("log")
    low = min([good.min(), *targets])
    high = min(good.max(), 30 * np.median(good)) if targets else good.max()
    axis.set_ylim(low / 1.15, max(high, low * 1.5) * 1.1)
    _plain_ticks(axis.yaxis, high / low)


def _plain_ticks(axis, span: float) -> None:
    """1, 2, 5 within a decade or so, where powers of ten alone would say too little."""
    if span < 30:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
