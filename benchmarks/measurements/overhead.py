"""What a probe, the controller and a limit on the step add to a training step.

A median of step times does not show something rare, so the two parts are measured apart:

    overhead = (step without the probe firing / plain step - 1)
               + rate * (step with the probe firing - step without) / plain step

`rate` is the share of the steps at which the probe fires, or factors are refreshed. A row names the
plain step: a probe's is the controller's without one, a limit's that of `optax.adam`. What is
added between measurements never works on activations. A workload may name a smaller batch for it.
"""

import dataclasses
import inspect
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from rich.console import Console

import fgo_jax as fgo
from benchmarks.measurements.memory import phases
from benchmarks.measurements.workloads import Steps, Workload
from benchmarks.runs import timing
from benchmarks.runs.store import environment
from benchmarks.runs.timing import Bounded
from benchmarks.terminal import figures
from fgo_jax.probes import Probe

LIMITS = {
    "gradient_stream": 0.01, "hutchinson": 0.03, "lanczos": 0.03, "trajectory": 0.03,
    "commutator": 0.03, "clip_by_softmax_radius": 0.05, "target_acquisition averaged": 0.1,
}  # fmt: skip
RATE = 1e-4  # of learning; small, so that thousands of steps leave the numbers ordinary
# A timed probe is due from this step on, so one compiled program serves both timings.
FIRES = 2**20
STEP_LIMITS = {limit.__name__: limit for limit in (
    fgo.clip_by_softmax_radius, fgo.scale_by_friction_limit,
)}  # fmt: skip


class Part(NamedTuple):
    """Something that a step may have more than a plain one."""

    plain_name: str
    plain: Any  # the transformation without it
    idle: Any  # the transformation in which it never measures before step `FIRES`
    firing: Any = None  # and in which it measures at every step from there on
    rate: float = 0.0  # measurements per step


def parts(workload: Workload) -> dict[str, Part]:
    """All that is timed on a workload, at its defaults."""
    if workload.name.endswith("_leaves"):
        whole = fgo.target_acquisition(RATE)
        return {"target_acquisition": Part("adamw", optax.adamw(RATE), whole)}
    if workload.transforms:
        return _transforms()
    fisher = fgo.curvature.ggn(workload.predict, "softmax_cross_entropy")
    adam, controller = optax.adam(RATE), fgo.phased([fgo.acquisition(RATE)], [])
    probes = {
        "gradient_stream": fgo.probes.gradient_stream(),
        "hutchinson": fgo.probes.hutchinson(fisher), "lanczos": fgo.probes.lanczos(fisher),
        "trajectory": fgo.probes.trajectory(), "commutator": fgo.probes.commutator(workload.loss),
    }  # fmt: skip
    rates = {name: measurement_rate(probe, workload.horizon) for name, probe in probes.items()}
    added = {"controller": Part("adam", adam, controller)}
    for name, probe in probes.items():
        watched = fgo.phased([fgo.acquisition(RATE)], [], on_demand(probe))
        added[name] = Part("controller", controller, watched, watched, rates[name])
    for name, limit in STEP_LIMITS.items():
        # Even the one that never measures does so at its first step, which compiles.
        never, always = (optax.chain(adam, limit(workload.predict, every=n)) for n in (FIRES, 1))
        rate = 1 / inspect.signature(limit).parameters["every"].default
        added[name] = Part("adam", adam, never, always, rate)
    if workload.phases:
        kronecker = fgo.scale_by_kronecker_fisher()
        refinement = optax.chain(kronecker, optax.scale_by_learning_rate(RATE))
        stream = on_demand(probes["gradient_stream"])
        phases = fgo.target_acquisition(RATE, warmup_steps=0, probe=stream)
        rate = rates["gradient_stream"]
        added["target_acquisition"] = Part("refinement", refinement, phases, phases, rate)
    return added


def _transforms() -> dict[str, Part]:
    """Optimizers beside AdamW; what fires is a refresh of their factors."""
    rate, adamw = optax.scale_by_learning_rate(RATE), optax.adamw(RATE)
    never = dataclasses.replace(fgo.probes.gradient_stream(), due=lambda state, step: step < 0)
    adam = {"transform": optax.scale_by_adam(), "average_weights": 0.1, "probe": never}
    transforms = (fgo.scale_by_kronecker_fisher, fgo.scale_by_fismo)
    whole: dict[str, Any] = {"": {}, " in blocks of 256": {"block_size": 256}}
    refreshed = {
        **{f.__name__: lambda n, f=f: optax.chain(f(refresh_every=n), rate) for f in transforms},
        **{f"target_acquisition averaged{title}": lambda n, sizes=sizes: phases(
            0.1, probe=never, refresh_every=n, **sizes) for title, sizes in whole.items()},
    }  # fmt: skip
    return {
        "optax.contrib.muon": Part("adamw", adamw, optax.contrib.muon(RATE)),
        "phases of Adam averaged": Part("adamw", adamw, fgo.target_acquisition(RATE, **adam)),
        **{n: Part("adamw", adamw, make(FIRES), make(1), 0.1) for n, make in refreshed.items()},
    }


def measurement_rate(probe: Probe, horizon: int) -> float:
    """Share of the first `horizon` steps at which a probe fires; its cadence may vary."""
    return float(np.mean(timing.cadence(probe, horizon)[0], dtype=np.float64))


def on_demand(probe: Probe) -> Probe:
    """The probe with another cadence: never before `FIRES`, always from it on."""
    return dataclasses.replace(probe, due=lambda state, step: step >= FIRES)


def calls(workload: Workload, part: Part) -> dict[str, Steps]:
    """What is timed of a part: a plain step, an idle one and one that measures, if there is one."""
    made = {"plain": Steps(workload, part.plain), "idle": Steps(workload, part.idle)}
    if part.firing is not None:
        shared = made["idle"].program if part.firing is part.idle else None
        made["firing"] = Steps(workload, part.firing, FIRES, shared)
    return made


def measure(
    workload: Workload, rounds: int | None = None, chosen: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """A row for every part of a workload, or for those `chosen`."""
    rounds = workload.rounds if rounds is None else rounds
    firing_rounds = min(rounds, workload.firing_rounds)
    sizes = {
        "workload": workload.name, "parameters": int(optax.tree.size(workload.params)),
        "batch_size": len(workload.batch["label"]),
        "batch_size_between": len(workload.between.batch["label"]), "horizon": workload.horizon,
        "steps_per_call": workload.steps, "repeats": workload.repeats,
    }  # fmt: skip
    known, rows = parts(workload), []
    for name in known if chosen is None else chosen:
        part = known[name]
        # Each beside its own plain step: the closer in time, the more alike the machine is.
        brief, _ = _seconds(workload.between, part._replace(firing=None), rounds)
        whole, cost = _seconds(workload, part, firing_rounds)
        found = combine(brief, whole, part.rate, is_brief=workload.brief_batch is not None)
        limit = LIMITS.get(name)
        rows.append({
            **sizes, "part": name, "plain": part.plain_name,
            **{key: bound.median for key, bound in found.items()},
            **{f"{key}_upper": bound.upper for key, bound in found.items()}, "rate": part.rate,
            "limit": limit, "met": None if limit is None else found["total"].upper <= limit,
            "rounds": rounds, "firing_rounds": firing_rounds,
            **{f"{key}_seconds": float(np.median(each)) for key, each in whole.items()},
            **{f"brief_{key}_seconds": float(np.median(each)) for key, each in brief.items()},
            **cost, "environment": environment(),
        })  # fmt: skip
    return rows


def _seconds(workload: Workload, part: Part, rounds: int) -> tuple[dict[str, np.ndarray], Any]:
    """Seconds of a step, by rounds; what the idle call costs else."""
    timed = calls(workload, part)
    seconds = timing.interleaved(
        timed, rounds, repeats=workload.repeats, renew=lambda name: timed[name].renew(),
        clock=time.process_time if workload.transforms else time.perf_counter,
    )  # fmt: skip
    by_step = {key: values / workload.steps for key, values in seconds.items()}
    plain = {"plain_compile_cpu_seconds": timed["plain"].program[1]}
    return by_step, timed["idle"].cost() | plain


def combine(
    brief: Mapping[str, np.ndarray], whole: Mapping[str, np.ndarray], rate: float,
    is_brief: bool = False,
) -> dict[str, Bounded]:  # fmt: skip
    """Shares of the plain step: between measurements, of one measurement, and in total.

    What has no step in which it fires does the same at every step.
    """
    between = brief["idle"] / brief["plain"] - 1.0
    # Shares of a brief step are that many seconds, which are to be shares of the whole one.
    scales = (brief["plain"], whole["plain"]) if is_brief else ()

    def share(between: Any, seconds: Any = 1.0, whole_seconds: Any = 1.0) -> Any:
        return between * seconds / whole_seconds

    def total(cost: Any, *rest: Any) -> Any:
        return rate * cost + share(*rest)

    cost = np.zeros(2)  # the bootstrap takes two values at least
    if "firing" in whole:
        cost = (whole["firing"] - whole["idle"]) / whole["plain"]
    return {
        "idle": timing.bounded(between, *scales, of=share), "firing": timing.bounded(cost),
        "total": timing.bounded(cost, between, *scales, of=total),
    }  # fmt: skip


def merged(
    held: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Rows of one workload measured now, and before them held rows of others and of other parts.

    Held rows of that workload with another size or other calls go.
    """
    sizes = (
        "parameters", "batch_size", "batch_size_between", "horizon", "steps_per_call", "repeats",
    )  # fmt: skip
    new, parts = measured[0], {row["part"] for row in measured}
    alike = [r for r in held if all(r[key] == new[key] for key in sizes) and r["part"] not in parts]
    return [*(r for r in held if r["workload"] != new["workload"] or r in alike), *measured]


_COLUMNS = {
    "added by": "{part} / {plain}",
    "plain step": lambda row: f"{1e3 * row['plain_seconds']:.2f} ms",
    "rounds": "{rounds}", "between": "{idle:+.2%}", "a measurement": "{firing:.2f} steps",
    "of steps": "{rate:.2%}", "overhead": "{total:+.2%}", "95 % bound": "{total_upper:+.2%}",
    "limit": lambda row: "" if row["limit"] is None else f"{row['limit']:.0%}",
}  # fmt: skip


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    for name in dict.fromkeys(row["workload"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["workload"] == name]
        title = f"{name}: {rows[0]['parameters']} parameters, batch {rows[0]['batch_size']}"
        console.print(figures(title, rows, _COLUMNS))
