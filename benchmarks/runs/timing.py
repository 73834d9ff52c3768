"""Times of several functions, taken in turns; the amortised step times of a race's methods.

A machine's speed drifts, so every round runs each function in random order, and times of the same
round are compared. The result is a median over rounds, with its bootstrap bound on request.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

import fgo_jax as fgo
from benchmarks.methods import Method
from benchmarks.runs.store import RESULTS, held_in
from benchmarks.runs.training import Carry, train_step
from benchmarks.statistics import CONFIDENCE, RESAMPLES
from benchmarks.tasks.task import Task
from fgo_jax.probes import Probe, ProbeInputs

PHASES, REFERENCE = ("acquisition", "reask", "execution"), "constant"
# A run over its steps alone, with evaluations; seconds to compile a run and its timed scan.
EVALUATING, COMPILING = 1.3, 12.0


class Bounded(NamedTuple):
    """A median over rounds and its one-sided upper bound."""

    median: float
    upper: float


def interleaved(
    functions: Mapping[str, Callable[[], Any]], rounds: int, *, repeats: int = 1,
    renew: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Seconds of each function, [rounds]; each runs once before the clock starts.

    A round keeps the fastest of `repeats` times, since whatever else the machine does only
    adds. `renew` is called before each run, off the clock: where the memory of a large state
    lies can make a difference that would stay with a function through all rounds.
    """
    rng = np.random.default_rng(0)
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: np.full(rounds, np.inf) for name in functions}
    for index in np.repeat(np.arange(rounds), repeats):
        for name in rng.permutation(list(functions)):
            renew(name)
            began = clock()
            jax.block_until_ready(functions[name]())
            seconds[name][index] = min(seconds[name][index], clock() - began)
    return seconds


def bounded(*parts: np.ndarray, of: Callable[..., Any] = lambda *medians: sum(medians)) -> Bounded:
    """Median of one value per round, with the upper 95 % bound of its bootstrap.

    Of several parts, measured in rounds of their own: a function `of` their medians.
    """

    def statistic(*samples: np.ndarray, axis: int = -1) -> Any:
        return of(*(np.median(sample, axis=axis) for sample in samples))

    found = stats.bootstrap(
        parts, statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, alternative="less",
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return Bounded(float(statistic(*parts)), float(found.confidence_interval.high))


class StepTime(NamedTuple):
    seconds: float  # per step: the ratio times the reference's median
    ratio: float  # to the reference's, median over rounds of per-round ratios


def step_times(
    task: Task, contestants: Mapping[str, tuple[Method, Mapping[str, float]]], *, rounds: int = 7,
) -> dict[str, StepTime]:  # fmt: skip
    """Times of `{name: (method, hyperparameters)}`, amortised over a long scan.

    A phased method has one time per phase, `name:phase`, since its phases do different work.
    `contestants` must hold `constant`, the unit of the ratios. A scan has the task's
    `timed_steps`, and so many more that each method does the same cadenced work in every scan.
    """
    cadences = [method.cadence for method, _ in contestants.values()]
    steps = whole_cadences(task.timed_steps, cadences)
    scans: dict[str, Callable[[], Any]] = {}
    for name, (method, hyperparameters) in contestants.items():
        scans |= _scans(task, name, method, hyperparameters, steps)
    seconds = {name: each / steps for name, each in interleaved(scans, rounds).items()}
    unit = seconds[REFERENCE]
    ratios = {name: float(np.median(each / unit)) for name, each in seconds.items()}
    # Not each method's own median: rounds in which the machine was busy would bias it.
    return {name: StepTime(ratio * float(np.median(unit)), ratio) for name, ratio in ratios.items()}


def whole_cadences(steps: int, cadences: Iterable[int]) -> int:
    """The fewest steps, `steps` at least, that are a multiple of every cadence."""
    period = math.lcm(*cadences)
    return -(-steps // period) * period


def cadence(probe: Probe, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """[num_steps] each: whether the probe is due, and how often its estimates have changed.

    The probe runs on a tree of one parameter, since its cadence does not depend on gradients.
    One that needs a model is never run, so its cadence must be fixed and its count stays 0.
    """
    params = {"w": jnp.ones(1)}
    inputs = ProbeInputs(params, params, params, None, jax.random.key(0), jnp.int32(0))

    def step(state: Any, number: jax.Array) -> tuple[Any, Any]:
        due = probe.due(state, number)
        if "batch" not in probe.requires:
            now = inputs._replace(step=number)
            state = jax.lax.cond(due, probe.measure, lambda _, old: old, now, state)
        return state, (due, state.evaluations)

    scan = jax.jit(lambda: jax.lax.scan(step, probe.init(params), jnp.arange(num_steps))[1])
    due, evaluations = scan()
    return np.asarray(due), np.asarray(evaluations)


def announced(task: Task, runs: Mapping[str, int]) -> str:
    """How long so many runs of each trajectory take, by the committed step times, in words."""
    steps = sum(runs.values()) * task.num_steps
    times = held_in(RESULTS / f"{task.name}.json", "step_times")
    known = {name.partition(":")[0]: time["seconds"] for name, time in times.items()}
    if not known:
        return f"{steps} steps. No step times of {task.name} are committed to say how long."
    seconds = sum(n * known.get(name, max(known.values())) for name, n in runs.items())
    minutes = (EVALUATING * task.num_steps * seconds + COMPILING * len(runs)) / 60
    return (
        f"{steps} steps: about {max(minutes, 1):.0f} min on two idle cores like those of the "
        "committed step times, compiling included. Finished runs are kept and not run again."
    )


def label(method: Method) -> str:
    """Under which a method is timed: methods that read the same phased runs are timed once."""
    return method.trajectory if method.phased else method.name


def _scans(task, name, method, hyperparameters, steps) -> dict[str, Callable[[], Any]]:
    tx = optax.with_extra_args_support(method.build(task, hyperparameters))
    key, data = jax.random.key(0), task.data(0)
    params = task.init(key)
    # The average is work that only those need who are judged by it.
    without_average = method.phased or method.weights == "raw"
    average = () if without_average else params

    @jax.jit
    def scan(carry):
        def step(carry, _):
            flags = without_average, method.needs_batch
            return train_step(task, tx, data, key, carry, *flags)

        return jax.lax.scan(step, carry, length=steps)

    def timed(opt_state):
        # Every timed scan starts where one has led: behind any hand-over, in each round alike.
        carry, _ = scan(Carry(params, average, opt_state, jnp.zeros((), jnp.int32)))
        return lambda: scan(carry)

    state = tx.init(params)
    if not method.phased:
        return {name: timed(state)}
    return {f"{name}:{phase}": timed(fgo.force_phase(state, phase)) for phase in PHASES}


def seconds_to(
    step: float, steps: np.ndarray, phases: np.ndarray | None, times: Mapping[str, StepTime],
    name: str,
) -> float:  # fmt: skip
    """Seconds of the first `step` steps; `phases` are a phased run's, at its evaluations."""
    if not np.isfinite(step):
        return np.inf
    if phases is None:
        return step * times[name].seconds
    spent = np.diff(steps, prepend=0)[steps <= step]
    phase = np.nan_to_num(phases[steps <= step]).astype(int)
    unit = [times[f"{name}:{phase}"].seconds for phase in PHASES]
    return float(np.sum(spent * np.take(unit, phase, mode="clip")))
