"""The picture of a training run, from its telemetry alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fgo_jax.analysis.plotting import canvas, conditions
from fgo_jax.analysis.plotting.record import Record, Stretch, read

_TINTS = ("#fdf1dc", "#e2eefb", "#e4f4e8", "#f3e8f5")
_INKS = ("#8a5200", "#0b4f8a", "#1d6436", "#6a2c75")
# What axes say: words, unit. Other signals go by their names.
_LABELS = {
    "learning_rate": "learning rate\n[per step]",
    "intrinsic_dimension": "noise dimension\n[directions]",
    "agreement": "agreement\n[share]",
    "energy_rank": "energy rank\n[eigenvalues]",
    "energy_fraction": "energy fraction\n[share]",
    "energy_exponent": "energy exponent\n[power of 1/t]",
    "slow_share": "slow momentum\n[share]",
    "noise_scale": "noise scale\n[examples]",
    "cosine": "with gradient\n[cosine]",
}
_ALWAYS = ("intrinsic_dimension", "agreement")
# Number of medians: a run of a million steps costs no more to draw.
_BLOCKS = 200
# More validations than these would be one thick line of marks.
_MARKED = 60
_LINE = 12  # points from one line of names to the next
_LINES = 5


def run(
    telemetry: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    signals: Sequence[str] | None = None,
    title: str | None = None,
) -> Any:
    """Draws a run: its loss, its learning rate, what was measured, and what ended each phase.

    - Shades are phases, each with its first step and why it began. Vertical lines are
      transitions.
    - Loss, where ``value=`` was passed: every step, and the median of blocks of steps. Newest
      ``validation_value``, where one was passed. Crosses mark skipped steps.
    - Signals, each held until the next measurement.
    - Bars at the bottom: whether each condition that ends a phase held while the phase ran.

    Positive curves that span a large factor have logarithmic axes. So do the steps if all
    transitions are within the first tenth of the run.

    Args:
      telemetry: what :func:`fgo_jax.telemetry` returned at every step or every few: a dict of
        arrays [steps], as `jax.lax.scan` stacks it, or a list of dicts.
      signals: names of the telemetry to draw; None for the dimension, the agreement and what
        the conditions of the phases read.
      title: a line above the picture.

    Returns:
      A matplotlib figure, 8 inches wide: 800 pixels at matplotlib's resolution.

    Raises:
      ImportError: without matplotlib, saying how to install it.
      ValueError: for telemetry of one step, of several runs or of several optimizers, for
        records that differ in their names, and for signals that are not in it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3)
      >>> params = jnp.ones(3)
      >>> def step(state, _):
      ...     _, state = tx.update(params, state, params, value=jnp.float32(1.0))
      ...     return state, fgo.telemetry(state)
      >>> _, telemetry = jax.lax.scan(step, tx.init(params), length=20)
      >>> figure = fgo.plotting.run(telemetry)  # figure.savefig("run.png") writes it
      >>> float(figure.get_size_inches()[0])
      8.0

    Source: the quantities of section 4 of the FGO paper.
    """
    record = read(telemetry)
    shown = _chosen(record, signals)
    rows = conditions.listed(record)
    losses = [name for name in ("loss", "validation") if _known(record, name)]
    heights = [2.0] * bool(losses) + [1.2] * (1 + len(shown)) + [0.32 * len(rows)] * bool(rows)
    plt = canvas.pyplot()
    figure, grid = plt.subplots(
        len(heights),
        1,
        sharex=True,
        squeeze=False,
        height_ratios=heights,
        figsize=(8.0, 0.9 + 0.3 * bool(rows) + sum(heights)),
        layout="constrained",
    )
    axes = list(grid[:, 0])
    _steps(axes[-1], record)
    for axis in axes:
        _shade(axis, record.stretches)
        axis.tick_params(labelsize=9, colors=canvas.QUIET)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(canvas.RULE)
    left = iter(axes)
    if losses:
        _draw_losses(next(left), record, losses)
    for name in ("learning_rate", *shown):
        axis = next(left)
        values = _finite(record.numbers[name])
        ink = canvas.INK if name == "learning_rate" else canvas.BLUE
        axis.plot(record.steps, values, lw=1.4, drawstyle="steps-post", color=ink)
        label = _LABELS.get(name, name.replace("_", " "))
        # The warm-up begins at zero, which must not choose the scale.
        seen = values[np.argmax(values) :] if name == "learning_rate" else values
        share = label.endswith(("[share]", "[cosine]"))
        whole = label.endswith(("[directions]", "[eigenvalues]"))
        canvas.scale(axis, seen, decades=not share and "[power" not in label, whole=whole)
        if share:
            seen = 1.1 * values[np.isfinite(values)]
            axis.set_ylim(np.min(seen, initial=-0.1), np.max(seen, initial=1.1))
            axis.set_yticks([0.0, 0.5, 1.0])
        axis.set_ylabel(label, fontsize=9)
    if rows:
        conditions.draw(next(left), record, rows)
    axes[-1].set_xlabel("step (updates made)", fontsize=9)
    figure.align_ylabels(axes)
    # The layout makes room for a few lines of names. More would leave none for the axes.
    if more := max(_name_phases(axes[0], record) - _LINES, 0):
        figure.set_size_inches(8.0, figure.get_figheight() + more * _LINE / 72.0)
    if title is not None:
        figure.suptitle(title, fontsize=11, weight="bold", x=0.01, ha="left")
    if notes := _notes(record):
        figure.supxlabel(notes, fontsize=9, color=canvas.QUIET, x=0.99, ha="right")
    return figure


def _chosen(record: Record, signals: Sequence[str] | None) -> list[str]:
    """The signals to draw: those asked for, or those that were measured and matter."""
    if signals is not None:
        if isinstance(signals, str):
            raise ValueError(f"signals must be a list of names, such as [{signals!r}].")
        if missing := [name for name in signals if name not in record.numbers]:
            raise ValueError(
                f"the telemetry has no {missing[0]!r}: pass signals= among "
                f"{', '.join(sorted(record.numbers))}."
            )
        return list(signals)
    # The names of a condition and of its signal may hold a slash themselves.
    keys = [name.split("/", 2) for name in record.numbers if name.startswith("condition/")]
    bare = [condition.removeprefix("not_") for _, _, condition in keys]
    read_by = {
        max(named, key=len)
        for condition in bare
        if (named := [s for s in record.numbers if condition.startswith(f"{s}_")])
    }
    others = sorted(read_by - {*_ALWAYS, "loss", "validation", "learning_rate"})
    return [name for name in (*_ALWAYS, *others) if _known(record, name)]


def _known(record: Record, name: str) -> bool:
    return bool(np.any(np.isfinite(record.numbers.get(name, np.nan))))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _steps(axis: Any, record: Record) -> None:
    """The common axis of the steps."""
    first, last = record.steps[0], record.steps[-1]
    begun = [stretch.begin for stretch in record.stretches[1:]]
    if begun and max(begun) < 0.1 * last:
        # What lies before is the beginning of the warm-up.
        first = max(first, 1.0, min(begun) / 30.0)
        axis.set_xscale("log")
        axis.set_xticks(canvas.round_numbers(first, last))
        axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xlim(first, max(last, first + 1.0))  # no step may have been taken


def _shade(axis: Any, stretches: list[Stretch]) -> None:
    for number, (_, begin, end, _) in enumerate(stretches):
        tint = _TINTS[_place(stretches, number) % len(_TINTS)]
        axis.axvspan(begin, end, color=tint, lw=0, zorder=0)
        if number:
            axis.axvline(begin, color=canvas.QUIET, lw=1.0, zorder=2)


def _place(stretches: list[Stretch], number: int) -> int:
    """The same for all stretches of one phase."""
    names = list(dict.fromkeys(stretch.phase for stretch in stretches))
    return names.index(stretches[number].phase)


def _draw_losses(axis: Any, record: Record, losses: list[str]) -> None:
    steps, drawn = record.steps, []
    if "loss" in losses:
        loss = _finite(record.numbers["loss"])
        wide = -(-len(steps) // _BLOCKS)
        style = {"color": "#9aa1ab", "lw": 0.7} if wide > 1 else {"color": canvas.INK, "lw": 1.6}
        axis.plot(steps, loss, label="training, as recorded", **style)
        blocks = [slice(i, i + wide) for i in range(0, len(steps), wide)]
        blocks = [block for block in blocks if np.any(np.isfinite(loss[block]))]
        drawn.append(np.array([np.nanmedian(loss[block]) for block in blocks]))
        centres = [np.mean(steps[block]) for block in blocks]
        if wide > 1:
            label = f"training, medians of {wide}"
            axis.plot(centres, drawn[-1], color=canvas.INK, lw=1.6, label=label)
    if "validation" in losses:
        newest = _finite(record.numbers["validation"])
        fresh = np.isfinite(newest) & (np.append(np.nan, newest[:-1]) != newest)
        style = {"color": canvas.VERMILLION, "ls": "--", "ms": 3, "lw": 1.2}
        style["marker"] = "o" if np.sum(fresh) <= _MARKED else ""
        axis.plot(steps[fresh], newest[fresh], label="validation", **style)
        drawn.append(newest[fresh])
    skipped = np.flatnonzero(np.diff(record.numbers.get("skipped_steps", [0.0])) > 0) + 1
    if len(skipped):
        at_the_top = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        where = np.full(len(skipped), 0.97)
        axis.plot(steps[skipped], where, "x", c=canvas.VERMILLION, label="skipped", **at_the_top)
    canvas.scale(axis, np.concatenate(drawn), below=0.2)
    axis.set_ylabel("loss\n[as passed]", fontsize=9)
    axis.legend(fontsize=9, framealpha=0.8, edgecolor="none", loc="lower left", ncols=4)


def _name_phases(axis: Any, record: Record) -> int:
    """Writes the phases' names above the axes; returns the number of lines used."""
    filled: list[float] = []  # how far each line is, as a share of the axis
    line = 0
    for number, (phase, begin, _, cause) in enumerate(record.stretches):
        text = f"{phase} from {begin:,.0f}: {cause}" if number else phase
        width = 0.011 * len(text)  # a bold letter of 9 points
        across = axis.transAxes.inverted().transform(axis.transData.transform((begin, 1.0)))[0]
        at = max(min(across, 1.0 - width), 0.0)
        # Upwards in the order of the run; back to the bottom once all earlier names end.
        lowest = 0 if max(filled, default=at) < at else line
        line = next((i for i in range(lowest, len(filled)) if filled[i] < at), len(filled))
        filled[line : line + 1] = [at + width + 0.01]
        ink = _INKS[_place(record.stretches, number) % len(_INKS)]
        above = {"xytext": (0, 3 + _LINE * line), "textcoords": "offset points"}
        axis.annotate(text, (at, 1.0), xycoords="axes fraction", color=ink, fontsize=9,
                      weight="bold", **above)  # fmt: skip
    return len(filled)


def _notes(record: Record) -> str:
    """What else a reader must know."""
    numbers, notes = record.numbers, []
    if skipped := int(np.max(numbers.get("skipped_steps", [0.0]))):
        notes.append(f"{skipped} {'step' if skipped == 1 else 'steps'} skipped: not finite")
    for name, words in (("stop", "should_stop holds"), ("uphill", "directions point uphill")):
        held = np.flatnonzero(numbers.get(name, np.zeros(1)) > 0.0)
        if len(held):
            notes.append(f"{words} from step {record.steps[held[0]]:,.0f}")
    return "; ".join(notes)
