"""The directions' cosine with the raw gradients, measured at a few of the steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.linalg.counters import later
from fgo_jax.linalg.trees import added_up, for_sums, real32

GROWTH = 0.01  # steps from one measurement to the next, as a share of the steps taken
SOONEST = 4  # at least this many: a measurement is a pass over the gradients
WINDOW = 16  # measurements in the running means
LEAST = 8  # measurements behind a verdict
ERRORS = 4.0  # standard errors below zero: with momentum single cosines are often negative


class DescentState(NamedTuple):
    """Running means of the cosine, of the transform that drives."""

    counts: jax.Array  # [3], int32; cosines in the means, total_step of the last and the next one
    means: jax.Array  # [2], float32; of the cosine and of its square


def descent_init() -> DescentState:
    """No measurement yet."""
    return DescentState(jnp.zeros(3, jnp.int32), jnp.zeros(2, jnp.float32))


def descent_update(
    state: DescentState,
    grads: Any,
    direction: Any,
    *,
    step: jax.Array,
    driver_since: jax.Array,
    taken: jax.Array,
) -> DescentState:
    """Measures when due; other steps cost one comparison.

    Args:
      grads: raw, before any clipping.
      direction: the transform's, before weight decay and slow momentum.
      step: [], int32; updates before this one; 0 again after a restart.
      driver_since: [], int32; the step at which the transform took over.
      taken: [], bool; a step that is not taken measures nothing.
    """

    def measured(
        grads: list[jax.Array], direction: list[jax.Array], state: DescentState
    ) -> DescentState:
        count, measured_at, _ = state.counts
        count = jnp.where((step == 0) | (driver_since > measured_at), 0, count)
        cosine = _cosine(grads, direction)
        share = 1.0 / jnp.minimum(count.astype(jnp.float32) + 1.0, WINDOW)
        gap = jnp.maximum(SOONEST, (GROWTH * step.astype(jnp.float32)).astype(jnp.int32))
        next_one = later(step, gap)
        # Unknown where either vector is zero.
        known = jnp.isfinite(cosine)
        counts = jnp.stack([jnp.minimum(count + 1, WINDOW), step, next_one])
        means = state.means + share * (jnp.stack([cosine, jnp.square(cosine)]) - state.means)
        return DescentState(
            jnp.where(known, counts, state.counts.at[2].set(next_one)),
            jnp.where(known, means, state.means),
        )

    def wait(grads: Any, direction: Any, state: DescentState) -> DescentState:
        del grads, direction
        return state

    due = taken & ((step >= state.counts[2]) | (step == 0))
    return jax.lax.cond(due, measured, wait, for_sums(grads), for_sums(direction), state)


def mean_cosine(state: DescentState) -> jax.Array:
    """[], float32: of the last measurements; NaN before the first."""
    return jnp.where(state.counts[..., 0] > 0, state.means[..., 0], jnp.nan)


def points_uphill(state: DescentState) -> jax.Array:
    """[], bool: whether the mean cosine is below zero with confidence.

    A mean of cosines, not of inner products, so that one large gradient does not decide.
    """
    # The state may be a stack of runs, as in `fgo_jax.telemetry`.
    measured, cosine, square = state.counts[..., 0], state.means[..., 0], state.means[..., 1]
    variance = jnp.maximum(square - jnp.square(cosine), 0.0)
    error = jnp.sqrt(variance / jnp.maximum(measured, 1).astype(jnp.float32))
    return (measured >= LEAST) & (cosine + ERRORS * error < 0)


def _cosine(grads: list[jax.Array], direction: list[jax.Array]) -> jax.Array:
    """[], float32; not finite where either is zero."""

    def products(g: jax.Array, d: jax.Array) -> jax.Array:
        g, d = real32(g), real32(d)
        return jnp.stack([jnp.sum(g * d), jnp.sum(g * g), jnp.sum(d * d)])

    pairs = zip(grads, direction, strict=True)
    along, steepness, length = added_up([products(*pair) for pair in pairs], (3,))
    return along / jnp.sqrt(steepness) / jnp.sqrt(length)
