"""How fast the energy of the slow mean falls: what is still to be gained at this rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.smoothing.slow_momentum import WINDOW, SlowMomentumState

EVERY = 10  # steps between measurements
MEMORY = 0.25  # of the exponent, as a share of the measurements taken


class EnergyFallState(NamedTuple):
    """Running means behind the exponent; they begin anew with the slow momentum."""

    measurements: jax.Array  # [], int32
    measured_at: jax.Array  # [], int32; directions in the mean at the last measurement
    energy: jax.Array  # [], float32; squared norm of the mean then
    mean_energy: jax.Array  # [], float32
    mean_slope: jax.Array  # [], float32; of the energy, per unit of log time


def energy_fall_init() -> EnergyFallState:
    # One array for each: a buffer that is there twice cannot be donated.
    dtypes = (jnp.int32, jnp.int32, jnp.float32, jnp.float32, jnp.float32)
    return EnergyFallState(*(jnp.zeros([], dtype) for dtype in dtypes))


def energy_fall_update(
    state: EnergyFallState,
    slow: SlowMomentumState,
    taken: Any = True,
    anew: Any = False,
) -> EnergyFallState:
    """Measures every `EVERY` directions.

    Args:
      slow: the momentum before this step's direction.
      taken: [], bool; a step that is not taken changes nothing.
      anew: [], bool; whether directions come from another transform now.
    """
    seen = slow.averaged_steps
    due = taken & (seen % EVERY == 0)
    state = jax.tree.map(
        lambda fresh, old: jnp.where(taken & anew, fresh, old), energy_fall_init(), state
    )

    # Inside the branch: between measurements no pass over the mean is made.
    def measured(mean: Any, state: EnergyFallState) -> EnergyFallState:
        energy = optax.tree.norm(mean, squared=True).astype(jnp.float32)
        # The mean's memory is c n + 1 directions: its own log time is that of n + 1/c.
        passed = jnp.log1p(WINDOW * (seen - state.measured_at) / (WINDOW * state.measured_at + 1.0))
        pairs = (state.measurements - 1).astype(jnp.float32)
        step = jnp.where(pairs >= 0, 1.0 / (MEMORY * jnp.maximum(pairs, 0.0) + 1.0), 0.0)
        slope = (energy - state.energy) / jnp.where(passed > 0, passed, 1.0)
        middle = 0.5 * (energy + state.energy)
        new = EnergyFallState(
            state.measurements + 1,
            seen,
            energy,
            state.mean_energy + step * (middle - state.mean_energy),
            state.mean_slope + step * (slope - state.mean_slope),
        )
        # What is too large for float32 is no measurement.
        known = jnp.isfinite(energy) & jnp.isfinite(new.mean_energy) & jnp.isfinite(new.mean_slope)
        return jax.tree.map(lambda a, b: jnp.where(known, a, b), new, state)

    def begun(mean: Any, state: EnergyFallState) -> EnergyFallState:
        del mean
        return jax.tree.map(
            lambda fresh, old: jnp.where(due, fresh, old), energy_fall_init(), state
        )

    return jax.lax.cond(due & (seen > 0), measured, begun, slow.mean, state)


def energy_exponent(state: EnergyFallState) -> jax.Array:
    r"""q, where the energy of the slow mean falls as :math:`t^{-q}`; NaN before two measurements.

    A mean over a share of the t directions so far keeps its length where they agree on one
    (q = 0). Where they are independent noise its energy falls as 1/t (q = 1). Where parameters
    only move to and fro around a point of rest, at a constant rate, the sum of all directions
    stays bounded, so the mean falls as 1/t and its energy as 1/t^2 (q = 2). t counts from the
    momentum's start.
    """
    known = (state.measurements > 1) & (state.mean_energy > 0)
    exponent = -state.mean_slope / jnp.where(known, state.mean_energy, 1.0)
    return jnp.where(known, exponent, jnp.nan)
