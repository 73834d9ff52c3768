"""Runs a trigger over many synthetic streams at once, and counts."""

from __future__ import annotations

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


class Span(NamedTuple):
    """The phase that a trigger is to end."""

    start: int = 0  # total step at which it begins
    minimum: int = 1  # least number of updates in it


def fired(
    make: Callable[..., Trigger],
    span: Span,
    steps: np.ndarray,
    signals: Signals,
    settings: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """[runs], float64: the step at which each run's phase would be ended; inf for never.

    Args:
      make: of the trigger.
      span: the phase.
      steps: [looks], total steps in order.
      signals: of every run at these looks.
      settings: keyword arguments of `make`, each [settings]: then [settings, runs].
    """
    found = np.asarray(_fired(make, span, steps, signals, settings))
    return np.where(found == _NEVER, np.inf, found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fired(make, span: Span, steps: jax.Array, signals: Any, settings: Any) -> jax.Array:
    def every_run(setting: Mapping[str, Any]) -> jax.Array:
        trigger = make(**setting)
        return jax.vmap(lambda own: _first(trigger, steps, own, span))(signals)

    return every_run({}) if settings is None else jax.lax.map(every_run, settings)


def _first(trigger: Trigger, steps: jax.Array, signals: Any, span: Span) -> jax.Array:
    """The first step, [] int32, at which a trigger ends a phase that began at `span.start`.

    As in the controller, the trigger's state begins with the phase, it does not see
    measurements before, and its verdict counts from the phase's least length on.
    """

    def look(state, item):
        step, signals = item
        begun = step >= span.start
        observation = Observation(signals, step - span.start, step)
        verdict, new = trigger.update(observation, state)
        state = jax.tree.map(lambda a, b: jnp.where(begun, a, b).astype(b.dtype), new, state)
        holds = begun & (verdict == 1) & (step - span.start + 1 >= span.minimum)
        return state, holds

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
        "runs": len(fired),
        **share(ended),
        "median_step": float(np.median(fired[ended])) if ended.any() else None,
    }


def delay(fired: np.ndarray, change: float, steps: np.ndarray) -> dict[str, Any]:
    """When runs were ended that should end at `change`: too early, or how much later.

    Quantiles are over the runs that did not end early; a run that never ends counts as
    later than any other. Delays are counted in measurements too, which are taken at `steps`.
    """
    late = fired[fired >= change]
    quantiles = {}
    for name, level in (("median", 0.5), ("quantile_90", 0.9)):
        # An order statistic, since a run may be at infinity.
        step = float(np.quantile(late, level, method="higher")) if len(late) else np.inf
        after = np.sum((steps >= change) & (steps <= step)) if np.isfinite(step) else np.inf
        quantiles[name] = {"step": step, "factor": step / change, "measurements": float(after)}
    return {
        "runs": len(fired),
        "change": change,
        "early": share(fired < change),
        "never": share(np.isinf(fired)),
        **quantiles,
    }
