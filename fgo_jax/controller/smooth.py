"""Smoothing: the slow momentum in the direction, its energy, and the average of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.controller.design import Design
from fgo_jax.controller.select import select
from fgo_jax.controller.state import FgoState
from fgo_jax.linalg.ordering import ordered_after
from fgo_jax.smoothing import average_weights, energy_exponent, slow_momentum


def smooth(
    design: Design, state: FgoState, direction: Any, finite: jax.Array
) -> tuple[Any, Any, Any]:
    """The direction with the running phase's share of slow momentum; its mean and its energy.

    `direction` holds the weight decay already: at a stationary point gradient and decay
    cancel, so only their sum averages to zero.

    Args:
      finite: [], bool; a step that is not finite changes nothing.
    """
    clock, energy, taken = state.clock, state.energy_fall, finite
    if design.has_adaptive_decay:
        anew = clock.driver_since == clock.total_step
        energy = energy_exponent.energy_fall_update(energy, state.slow, finite, anew=anew)
        taken = ordered_after(taken, energy.counts[0])  # the mean moves once it is measured
    if not design.has_slow_momentum:
        return direction, state.slow, energy
    shares = [phase.slow_share for phase in design.phases]
    of_phase = [jnp.asarray(0.0 if s is None else s, jnp.float32) for s in shares]
    direction, slow = slow_momentum.momentum_update(
        state.slow,
        direction,
        select(clock.phase, of_phase),
        ramp_steps=design.handover_steps,
        taken=taken,
    )
    return direction, slow, energy


def average(design: Design, state: FgoState, params: Any, finite: jax.Array) -> Any:
    """The average of the weights with this step's parameters, where one is kept."""
    if design.average_weights is None:
        return state.average
    return average_weights.average_update(state.average, params, design.average_weights, finite)
