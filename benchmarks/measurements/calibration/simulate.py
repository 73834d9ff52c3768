"""Runs a trigger over many synthetic streams at once, and counts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks.statistics import CONFIDENCE
from fgo_jax.triggers import Observation, Signal, Trigger

Signals = dict[str, Signal]  # each leaf [runs, looks]
_NEVER = np.iinfo(np.int32).max


class Phase(NamedTuple):
    """A trigger, and the phase that it is to end."""

    make: Callable[..., Trigger]
    start: int = 0  # total step at which the phase begins
    minimum: int = 1  # least number of updates in it
    reads: str = "probe"  # or "loss" or "validation", alone


def fired(
    phase: Phase, steps: np.ndarray, signals: Signals,
    settings: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:  # fmt: skip
    """[runs], float64: the step at which each run's phase would be ended; inf for never.

    Args:
      phase: what begins and is to end.
      steps: [looks], total steps in order.
      signals: of every run at these looks.
      settings: keyword arguments of the trigger, each [settings]: then [settings, runs].
    """
    found = np.asarray(_fired(phase, steps, signals, settings))
    return np.where(found == _NEVER, np.inf, found)


@functools.partial(jax.jit, static_argnums=0)
def _fired(phase: Phase, steps: jax.Array, signals: Any, settings: Any) -> jax.Array:
    def every_run(setting: Mapping[str, Any]) -> jax.Array:
        trigger = phase.make(**setting)
        return jax.vmap(lambda own: _first(phase, trigger, steps, own))(signals)

    return every_run({}) if settings is None else jax.lax.map(every_run, settings)


def _first(phase: Phase, trigger: Trigger, steps: jax.Array, signals: Any) -> jax.Array:
    """[], int32: the first step at which the trigger ends the phase.

    As in the controller, the trigger's state begins with the phase, it does not see
    measurements before, and its verdict counts from the phase's least length on.
    """

    def look(state, item):
        step, signals = item
        begun = step >= phase.start
        observation = Observation(signals, step - phase.start, step)
        verdict, new = trigger.update(observation, state)
        state = jax.tree.map(lambda a, b: jnp.where(begun, a, b).astype(b.dtype), new, state)
        return state, begun & (verdict == 1) & (step - phase.start + 1 >= phase.minimum)

    _, holds = jax.lax.scan(look, trigger.init(), (steps.astype(jnp.int32), signals))
    return jnp.where(jnp.any(holds), steps[jnp.argmax(holds)], _NEVER).astype(jnp.int32)


def share(events: np.ndarray) -> dict[str, Any]:
    """A share of runs with its exact (Clopper-Pearson) 95 % interval."""
    test = stats.binomtest(int(np.sum(events)), len(events))
    interval = test.proportion_ci(CONFIDENCE, method="exact")
    return {"share": test.statistic, "low": interval.low, "high": interval.high}


def false_alarms(fired: np.ndarray) -> dict[str, Any]:
    """Share of null runs that were ended, and the median step of those that were."""
    ended = np.isfinite(fired)
    return {
        "runs": len(fired), **share(ended),
        "median_step": float(np.median(fired[ended])) if ended.any() else None,
    }  # fmt: skip


def delay(fired: np.ndarray, change: float, steps: np.ndarray) -> dict[str, Any]:
    """When runs were ended that should end at `change`: too early, or how much later.

    Quantiles are over the runs that did not end early; a run that never ends counts as
    later than any other. Delays are counted in measurements too, which are taken at `steps`.
    """
    late, quantiles = fired[fired >= change], {}
    for name, level in (("median", 0.5), ("quantile_90", 0.9)):
        # An order statistic, since a run may be at infinity.
        step = float(np.quantile(late, level, method="higher")) if len(late) else np.inf
        after = np.sum((steps >= change) & (steps <= step)) if np.isfinite(step) else np.inf
        quantiles[name] = {"step": step, "factor": step / change, "measurements": float(after)}
    return {
        "runs": len(fired), "change": change, "early": share(fired < change),
        "never": share(np.isinf(fired)), **quantiles,
    }  # fmt: skip
