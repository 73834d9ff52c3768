"""python -m benchmarks demo: two optimizers on real handwritten digits, in about a minute."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import matplotlib.pyplot as plt
import numpy as np
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

import fgo_jax as fgo
from benchmarks import statistics
from benchmarks.methods import METHODS, schedules
from benchmarks.race import picture, tuning
from benchmarks.race.hold import Entry
from benchmarks.runs.timing import PHASES
from benchmarks.runs.training import Curves, train
from benchmarks.tasks import Task, get_task
from benchmarks.terminal import console, table

LEVEL = "cosine"  # of the committed settings: the target for which both rates were tuned
NAMES = {"cosine": "Adam + cosine", "fgo_averaged": "FGO"}
READ = {"raw": "last", "averaged": "averaged"}  # the weights that a run is read at, in words
INKS = {"cosine": "#c8550a", "fgo_averaged": "#0b62a8"}  # told apart by colour-blind eyes
DASHED = (0, (5, 1.5))
EVERY = 20  # steps from one evaluation to the next
SAID = 500  # steps from one line to the next, where there is no screen
INTRODUCTION = """\
A vision transformer of 18 thousand parameters learns scikit-learn's handwritten digits, twice, \
{steps} steps of {batch} images each, from the same initial weights and on the same batches. \
Weight decay is 0 for both, as in the races. Peak rates are those that the same tuning chose for \
each (benchmarks/results/tuned/digits_vit.json): {rates}. The cosine is told how long the run is, \
FGO is not. One seed is a look and no evidence; benchmarks/README.md has that."""
CAPTION = """\
Target: validation loss {target:.3f} nats, what Adam + cosine ends with in this run. Seconds \
include evaluations, not compiling. Averaged: a running mean over about the last tenth of all \
steps."""


class Done(NamedTuple):
    """A finished run."""

    task: Task
    setting: Mapping[str, float]
    curves: Curves
    clock: np.ndarray  # seconds at each evaluation


@click.command("demo")
@click.option("--output", type=click.Path(dir_okay=False, writable=True, path_type=Path),
              default=Path("runs") / "demo.png", show_default=True, help="A picture.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(10 * EVERY), help="Another horizon T: only a try.")
def demo(output: Path, seed: int, steps: int | None) -> None:
    """Adam with a cosine, then FGO, on real digits: live, a table, a picture. About a minute."""
    output.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is found now
    task = dataclasses.replace(get_task("digits_vit"), eval_every=EVERY, smoothing=4)
    task = task.shortened(steps) if steps else task
    tuned = tuning.load(task)["methods"]
    settings = {name: tuned[name]["chosen"][LEVEL] for name in NAMES}
    rates = ", ".join(f"{NAMES[name]} {s['learning_rate']:g}" for name, s in settings.items())
    words = INTRODUCTION.format(steps=task.num_steps, batch=task.batch_size, rates=rates)
    console.print(words, highlight=False)
    runs = {name: _run(task, name, setting, seed) for name, setting in settings.items()}
    target = statistics.end_value(runs["cosine"].curves.raw, task.smoothing)
    console.print(_summary(runs, target))
    draw(runs, target, output)
    console.print(f"Wrote {output if output.suffix else f'{output}.png'}", soft_wrap=True)


def _run(task: Task, name: str, setting: Mapping[str, float], seed: int) -> Done:
    clock = []

    def watch(carry, record):
        loss = float(record["train"])  # waits for the segment
        clock.append(time.perf_counter())
        step, told = task.eval_every * len(clock), record["telemetry"]
        lines = [f"step {step} of {task.num_steps}", f"training loss {loss:.3f}"]
        lines += [f"validation {float(record[w]):.3f} ({said} weights)" for w, said in READ.items()]
        if not told:
            rate: Any = schedules.cosine(task, setting)(step - 1)
            return show(step, [*lines, f"learning rate {float(rate):.2e}"], "")
        lines[1:1] = [f"phase {PHASES[int(told['phase'])].replace('reask', 're-ask')}"]
        lines += [f"learning rate {float(told['learning_rate']):.2e}"]
        lines += [f"dimension {float(told['intrinsic_dimension']):.3g}"]
        return show(step, lines, fgo.explain(carry.opt_state))

    console.print(f"{NAMES[name]}: compiling ...")
    with _screen(NAMES[name]) as show:
        curves = train(task, METHODS[name], setting, seed, watch=watch)
    seconds = np.asarray(clock) - clock[0]
    # The first segment took about as long as the others.
    return Done(task, setting, curves, seconds + np.median(np.diff(seconds)))


@contextlib.contextmanager
def _screen(name: str) -> Iterator[Callable[[int, list[str], str], None]]:
    """Yields what shows a step's lines and its explanation: redrawn, or line by line in a log."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8) as live:
            yield lambda step, lines, why: live.update(
                Panel("\n".join([*lines, "", *why.splitlines()]), title=name, height=16)
            )
        return
    phase = ""

    def show(step: int, lines: list[str], why: str) -> None:
        nonlocal phase
        is_new, phase = why.split(" since ")[0] != phase, why.split(" since ")[0]
        if is_new or step % SAID == 0:
            console.print(f"{name}: {', '.join(lines)}", highlight=False, soft_wrap=True)
        for said in why.splitlines() if is_new else ():
            console.print(f"  {said}", highlight=False, soft_wrap=True)

    yield show


def _summary(runs: Mapping[str, Done], target: float) -> Table:
    """Four rows: both runs, read at their last weights and at the running average of these."""
    rows = []
    for name, done in runs.items():
        for weights, said in READ.items():
            error = 1 - done.curves.test[weights]["accuracy"]
            step, after = _curve(name, done, weights)[1](target), "-"
            if np.isfinite(step):
                after = f"{np.interp(step, done.curves.steps, done.clock):.1f}"
            steps = f"{step:.0f}" if after != "-" else f"> {done.task.num_steps}"
            rows.append((NAMES[name], said, f"{error:.1%}", steps, after, f"{done.clock[-1]:.1f}"))
    head = ("method", "weights", "test error", "steps to target", "seconds to it", "in all")
    shown = table("On 300 digits kept for the test", head, rows, left=2)
    shown.caption = CAPTION.format(target=target)
    return shown


def _curve(name: str, done: Done, weights: str) -> tuple[np.ndarray, Callable[[float], float]]:
    """The smoothed validation loss by these weights, and the step at which it reaches a target."""
    method = dataclasses.replace(METHODS[name], weights=weights)
    entry = Entry(done.task, method, done.setting, {0: done.curves})
    values = statistics.smooth(getattr(done.curves, weights), done.task.smoothing)
    return values, lambda target: float(entry.hits(target)[0])


def draw(runs: Mapping[str, Done], target: float, path: Path) -> None:
    """Validation loss, learning rate and dimension over the steps, with FGO's transitions."""
    adam, ours = runs["cosine"], runs["fgo_averaged"]
    steps, told = ours.curves.steps, ours.curves.telemetry
    with plt.rc_context({**picture.STYLE, "font.size": 11, "axes.grid": False}):
        figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 6.6), height_ratios=(2, 1, 1),
                                    layout="constrained")  # fmt: skip
        loss, rate, dimension = axes
        for label, name, weights, line in (
            ("Adam + cosine", "cosine", "raw", {"lw": 1.6, "ls": DASHED}),
            ("FGO, last weights", "fgo_averaged", "raw", {"lw": 0.9}),
            ("FGO, averaged weights", "fgo_averaged", "averaged", {"lw": 2.4}),
        ):
            values, hit = _curve(name, runs[name], weights)
            loss.plot(steps, values, color=INKS[name], label=label, **line)
            loss.plot(hit(target), target, "o", color=INKS[name], ms=7, mec="white", zorder=6)
        loss.axhline(target, color=picture.QUIET, lw=1.0, ls=":")
        loss.annotate(" Adam's end; dots: reached", (steps[0], target), va="bottom", fontsize=10)
        loss.set(yscale="log", ylabel="validation loss [nats]", yticks=(0.1, 0.2, 0.5, 1, 2))
        loss.legend(loc="upper right", fontsize=10)
        for name, rates, line in (
            ("cosine", schedules.cosine(adam.task, adam.setting)(steps - 1), {"ls": DASHED}),
            ("fgo_averaged", told["learning_rate"], {"lw": 2.4}),
        ):
            rate.plot(steps, np.asarray(rates), color=INKS[name], **line)
        rate.set(ylabel="learning rate\n[per step]", ylim=0)
        dimension.step(steps, told["intrinsic_dimension"], where="post", c=INKS["fgo_averaged"])
        dimension.set(ylabel="dimension of noise\n[directions]", yscale="log", yticks=(10, 100))
        ticks = [t for t in (20, 50, 100, 200, 500, 1000, 2000, steps[-1]) if t <= steps[-1]]
        dimension.set(xscale="log", xlabel="step", xlim=(steps[0], steps[-1]), xticks=ticks)
        for axis in (loss.yaxis, dimension.yaxis, dimension.xaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.set_minor_formatter(lambda value, _: "")
        for axis in axes:
            picture.shade(axis, ours.curves)
        for phase, begin, end in picture.spans(ours.curves):
            since = f"\nfrom {begin:.0f}" if begin else ""
            words = PHASES[phase].replace("reask", "re-ask") + since
            middle = np.sqrt(max(begin, steps[0]) * end)  # of a logarithmic axis
            loss.annotate(words, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center",
                          va="bottom", color=picture.PHASE_INKS[phase], weight="bold")  # fmt: skip
        figure.savefig(path, dpi=100, facecolor="white", pil_kwargs={"optimize": True})
        plt.close(figure)
