"""What a probe, the controller and a limit on the step add to a training step.

Something rare is not in a median of step times, so the two parts are measured apart:

    overhead = (step without the probe firing / plain step - 1)
               + rate * (step with the probe firing - step without) / plain step

in rounds of their own, with `rate` the share of the steps at which the probe fires at its default
cadence. A probe's plain step is the controller's without a probe; the controller's and a
step limit's own is `optax.adam`'s, and that of the three phases their refinement's alone.

What is added between measurements works on parameters and states, never on activations, so its
seconds are those of any batch. Where a workload names a smaller batch for it, they are taken
there, as a difference of two short steps: the noise of a long one, several percent of it on a
machine that others use too, would drown them. Then they are divided by the whole plain step.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import fgo_jax as fgo
from benchmarks.measurements.workloads import Steps, Workload, call, compiled
from benchmarks.runs import clock
from benchmarks.runs.clock import Bounded
from benchmarks.runs.store import environment
from fgo_jax.probes import Probe
from fgo_jax.probes.probe import ProbeInputs

LIMITS = {
    "gradient_stream": 0.01,
    "hutchinson": 0.03,
    "lanczos": 0.03,
    "clip_by_softmax_radius": 0.05,
}
HEADINGS = (
    "plain step", "rounds", "between", "a measurement", "of steps", "overhead", "95 % bound",
    "limit",
)  # fmt: skip
RATE = 1e-4  # of learning; small, so that thousands of steps leave the numbers ordinary
# A timed probe is due from this step on, so one compiled program serves both timings.
FIRES = 2**20


class Overhead(NamedTuple):
    """In shares of the plain step."""

    plain: str  # whose step that is
    idle: Bounded  # a step at which the probe does not fire
    firing: Bounded  # what one measurement costs
    rate: float  # measurements per step
    total: Bounded  # idle + rate * firing
    limit: float | None


def probes(workload: Workload) -> dict[str, Probe]:
    """Every probe of a whole run at its defaults."""
    fisher = fgo.curvature.ggn(workload.predict, "softmax_cross_entropy")
    return {
        "gradient_stream": fgo.probes.gradient_stream(),
        "hutchinson": fgo.probes.hutchinson(fisher),
        "lanczos": fgo.probes.lanczos(fisher),
    }


# Measured along the update of `optax.adam`, whose step is their plain one.
STEP_LIMITS = {
    "clip_by_softmax_radius": fgo.clip_by_softmax_radius,
    "scale_by_friction_limit": fgo.scale_by_friction_limit,
}


def step_limit_calls(workload: Workload, name: str) -> dict[str, Steps]:
    """A limit that measures at every step, and one that never does after its first."""

    def limited(every: int) -> Steps:
        limit = STEP_LIMITS[name](workload.predict, every=every)
        return call(workload, optax.chain(optax.adam(RATE), limit), 0)

    return {f"{name}:idle": limited(FIRES), f"{name}:firing": limited(1)}


def step_limit_rate(name: str) -> float:
    """Measurements per step at the default cadence."""
    return 1 / inspect.signature(STEP_LIMITS[name]).parameters["every"].default


def measurement_rate(probe: Probe, horizon: int) -> float:
    """Share of the first `horizon` steps at which a probe fires; its cadence may vary.

    The probe runs on a tree of one parameter, where only its cadence is of interest.
    """
    params = {"w": jnp.ones(1)}
    inputs = ProbeInputs(params, params, params, None, jax.random.key(0), jnp.int32(0))

    def step(state: Any, number: jax.Array) -> tuple[Any, jax.Array]:
        due = probe.due(state, number)
        if probe.requires:  # a model of the batch, not there; such probes have a fixed cadence
            return state, due
        measure = functools.partial(probe.measure, inputs._replace(step=number))
        return jax.lax.cond(due, measure, lambda old: old, state), due

    scan = jax.jit(lambda: jax.lax.scan(step, probe.init(params), jnp.arange(horizon))[1])
    return float(np.mean(np.asarray(scan()), dtype=np.float64))


class Added(NamedTuple):
    """Something that a step may have more than a plain one."""

    plain: str
    calls: Callable[[Workload], dict[str, Steps]]
    rate: float  # measurements per step


PLAIN: dict[str, Callable[[], Any]] = {
    "adam": lambda: optax.adam(RATE),
    "controller": lambda: fgo.phased([fgo.acquisition(RATE)], []),
    "refinement": lambda: optax.chain(
        fgo.scale_by_kronecker_fisher(), optax.scale_by_learning_rate(RATE)
    ),
}


def parts(workload: Workload) -> dict[str, Added]:
    """All that is timed on a workload."""

    def controller(workload: Workload) -> dict[str, Steps]:
        return {"controller:idle": call(workload, PLAIN["controller"](), 0)}

    def watched(name: str, probe: Probe, workload: Workload) -> dict[str, Steps]:
        return _pair(workload, name, fgo.phased([fgo.acquisition(RATE)], [], on_demand(probe)))

    def limited(name: str, workload: Workload) -> dict[str, Steps]:
        return step_limit_calls(workload, name)

    def phases(stream: Probe, workload: Workload) -> dict[str, Steps]:
        tx = fgo.target_acquisition(RATE, warmup_steps=0, probe=on_demand(stream))
        return _pair(workload, "target_acquisition", tx)

    added = {"controller": Added("adam", controller, 0.0)}
    for name, probe in probes(workload).items():
        rate = measurement_rate(probe, workload.horizon)
        added[name] = Added("controller", functools.partial(watched, name, probe), rate)
    for name in STEP_LIMITS:
        added[name] = Added("adam", functools.partial(limited, name), step_limit_rate(name))
    if workload.phases:
        stream = fgo.probes.gradient_stream()
        rate = measurement_rate(stream, workload.horizon)
        added["target_acquisition"] = Added("refinement", functools.partial(phases, stream), rate)
    return added


def measure(
    workload: Workload,
    rounds: int | None = None,
    chosen: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda calls: None,
) -> dict[str, Any]:
    """The workload's sizes, and the overhead of every part of it, or of those `chosen`."""
    rounds = workload.rounds if rounds is None else rounds
    known, between = parts(workload), workload.between
    overheads = {}
    for name in known if chosen is None else chosen:
        unit, calls, rate = known[name]
        # Each beside its own plain step: the closer in time, the more alike the machine is.
        idle = _seconds(between, _resting(between, known[name]), rounds, progress)
        few = min(rounds, workload.firing_rounds)
        both = {unit: call(workload, PLAIN[unit](), 0), **calls(workload)}
        whole = _seconds(workload, both, few, progress)
        limit = LIMITS.get(name)
        row = combine(idle, whole, name, unit, rate, limit, between is not workload)
        overheads[name] = {
            **_entry(row),
            "rounds": rounds,
            "firing_rounds": few,
            "seconds": {key: float(np.median(values)) for key, values in whole.items()},
            "brief_seconds": {key: float(np.median(values)) for key, values in idle.items()},
            "environment": environment(),
        }
    return {
        "parameters": int(optax.tree.size(workload.params)),
        "batch_size": _size(workload.batch),
        "batch_size_between": _size(workload.between.batch),
        "horizon": workload.horizon,
        "steps_per_call": workload.steps,
        "repeats": workload.repeats,
        "overheads": overheads,
    }


def _size(batch: Any) -> int:
    return int(jax.tree.leaves(batch)[0].shape[0])


def _resting(workload: Workload, added: Added) -> dict[str, Steps]:
    """A plain step and one with the part in it that does not measure."""
    calls = {k: steps for k, steps in added.calls(workload).items() if not k.endswith(":firing")}
    return {added.plain: call(workload, PLAIN[added.plain](), 0), **calls}


def _seconds(
    workload: Workload,
    calls: Mapping[str, Steps],
    rounds: int,
    progress: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Seconds of a step, by rounds."""
    timed = clock.interleaved(
        calls,
        rounds,
        progress,
        repeats=workload.repeats,
        renew=lambda name: calls[name].renew(),
    )
    return {key: values / workload.steps for key, values in timed.items()}


def combine(
    idle: Mapping[str, np.ndarray],
    whole: Mapping[str, np.ndarray],
    name: str,
    plain: str,
    rate: float,
    limit: float | None,
    is_brief: bool = False,
) -> Overhead:
    """One row from the rounds without and with a measurement.

    What has no step in which it fires does the same at every step.
    """
    between = idle[f"{name}:idle"] / idle[plain] - 1.0
    # Shares of a brief step are that many seconds, which are to be shares of the whole one.
    brief = [] if not is_brief else [idle[plain], whole[plain]]

    def share(between: Any, *seconds: Any) -> Any:
        return between * seconds[0] / seconds[1] if seconds else between

    cost = np.zeros(1)
    if f"{name}:firing" in whole:
        cost = (whole[f"{name}:firing"] - whole[f"{name}:idle"]) / whole[plain]
    total = clock.bounded(cost, between, *brief, of=lambda cost, *rest: rate * cost + share(*rest))
    resting = clock.bounded(between, *brief, of=share)
    return Overhead(plain, resting, clock.bounded(cost), rate, total, limit)


def _entry(overhead: Overhead) -> dict[str, Any]:
    parts = {k: v._asdict() if isinstance(v, Bounded) else v for k, v in overhead._asdict().items()}
    met = None if overhead.limit is None else overhead.total.upper <= overhead.limit
    return {**parts, "met": met}


def merged(held: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Workloads as measured now; of a part that was not, what is held.

    A held workload of another size or other calls says nothing of this one and goes.
    """
    results = dict(held)
    for name, entry in measured.items():
        old = held.get(name, {})
        alike = all(old.get(key) == entry[key] for key in entry if key != "overheads")
        kept = old["overheads"] if alike else {}
        results[name] = {**entry, "overheads": {**kept, **entry["overheads"]}}
    return results


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    for name, entry in results["workloads"].items():
        title = f"{name}: {entry['parameters']} parameters, batch {entry['batch_size']}"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column("added by")
        for heading in HEADINGS:
            table.add_column(heading, justify="right")
        for part, row in entry["overheads"].items():
            limit = "" if row["limit"] is None else f"{row['limit']:.0%}"
            table.add_row(
                f"{part} / {row['plain']}",
                f"{1e3 * row['seconds'][row['plain']]:.2f} ms",
                str(row["rounds"]),
                f"{row['idle']['median']:+.2%}",
                f"{row['firing']['median']:.2f} steps",
                f"{row['rate']:.2%}",
                f"{row['total']['median']:+.2%}",
                f"{row['total']['upper']:+.2%}",
                limit if row["met"] in (None, True) else f"[red]{limit}[/]",
            )
        console.print(table)


def on_demand(probe: Probe) -> Probe:
    """The probe with another cadence: never before `FIRES`, always from it on."""
    return dataclasses.replace(probe, due=lambda state, step: step >= FIRES)


def _pair(workload: Workload, name: str, tx: Any) -> dict[str, Steps]:
    step = compiled(workload, tx)
    return {
        f"{name}:idle": call(workload, tx, 0, step),
        f"{name}:firing": call(workload, tx, FIRES, step),
    }
