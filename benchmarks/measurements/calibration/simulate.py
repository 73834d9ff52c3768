"""Runs a trigger over many synthetic streams at once, and counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from fgo_jax.triggers import Observation, Signal, Trigger

Signals = dict[str, Signal]  # each leaf [looks]
NEVER = np.iinfo(np.int32).max
CONFIDENCE = 0.95


class Span(NamedTuple):
    """The phase that a trigger is to end."""

    start: int = 0  # total step at which it begins
    minimum: int = 1  # least number of updates in it


def first_firing(trigger: Trigger, steps: jax.Array, signals: Signals, span: Span) -> jax.Array:
    """[], int32: the step at which a phase that began at `span.start` would be ended.

    As the machine does it: the trigger's state begins with the phase, measurements before
    are not seen, and the verdict counts from the phase's least length on. `NEVER` if it
    does not hold at any of `steps` (total steps, in order; the looks).
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
    return jnp.where(jnp.any(holds), steps[jnp.argmax(holds)], NEVER).astype(jnp.int32)


def simulator(trigger: Trigger, span: Span) -> Callable[[np.ndarray, Signals], np.ndarray]:
    """(looks [looks], signals [runs, looks]) -> [runs], float64: `first_firing`; inf for none.

    It is compiled once for each number of looks and runs.
    """

    @jax.jit
    def several(steps, signals):
        return jax.vmap(lambda own: first_firing(trigger, steps, own, span))(signals)

    def simulate(steps: np.ndarray, signals: Signals) -> np.ndarray:
        fired = np.asarray(several(steps, signals))
        return np.where(fired == NEVER, np.inf, fired)

    return simulate


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
    later than any other.

    Args:
      fired: [runs].
      change: the step from which on firing is right.
      steps: [measurements] steps of them, in which the delay is counted too.
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
