"""How fast the squared norm of the slow mean falls, which tells how much progress is left."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.trees import wide
from fgo_jax.smoothing.slow_momentum import WINDOW, SlowMomentumState

EVERY = 10  # steps between measurements
MEMORY = 0.25  # of the exponent's running means, as a share of the measurements taken


class EnergyFallState(NamedTuple):
    """Running means behind the exponent. They start again whenever the slow momentum does."""

    measurements: jax.Array  # [], int32
    measured_at: jax.Array  # [], int32; directions in the mean at the last measurement
    energy: jax.Array  # [], float32; squared norm of the mean at the last measurement
    mean_energy: jax.Array  # [], float32
    mean_slope: jax.Array  # [], float32; of the energy, per unit of log time


def energy_fall_init() -> EnergyFallState:
    """No measurement yet."""
    # One array for each field: a buffer that is there twice cannot be donated.
    dtypes = (jnp.int32, jnp.int32, jnp.float32, jnp.float32, jnp.float32)
    return EnergyFallState(*(jnp.zeros([], dtype) for dtype in dtypes))


def energy_fall_update(
    state: EnergyFallState,
    slow: SlowMomentumState,
    taken: Any = True,
    anew: Any = False,
) -> EnergyFallState:
    """Measures once in `EVERY` directions.

    Args:
      slow: the momentum before this step's direction.
      taken: [], bool; a step that is not taken changes nothing.
      anew: [], bool; True at the first direction of another transform.
    """
    seen = slow.averaged_steps
    due = seen % EVERY == 0

    # Inside a branch, so that there is no pass over the mean between measurements.
    def look(mean: Any, state: EnergyFallState) -> EnergyFallState:
        old = optax.tree.where(anew | (due & (seen == 0)), energy_fall_init(), state)
        energy = optax.tree.norm(jax.tree.map(wide, mean), squared=True).astype(jnp.float32)
        # The memory of the mean is c n + 1 directions, so time is log(n + 1/c).
        passed = jnp.log1p(WINDOW * (seen - old.measured_at) / (WINDOW * old.measured_at + 1.0))
        pairs = (old.measurements - 1).astype(jnp.float32)
        step = jnp.where(pairs >= 0, 1.0 / (MEMORY * jnp.maximum(pairs, 0.0) + 1.0), 0.0)
        slope = (energy - old.energy) / jnp.where(passed > 0, passed, 1.0)
        middle = 0.5 * (energy + old.energy)
        new = EnergyFallState(
            old.measurements + 1,
            seen,
            energy,
            old.mean_energy + step * (middle - old.mean_energy),
            old.mean_slope + step * (slope - old.mean_slope),
        )
        # An energy beyond float32 is not a measurement.
        known = jnp.isfinite(energy) & jnp.isfinite(new.mean_energy) & jnp.isfinite(new.mean_slope)
        return optax.tree.where(due & (seen > 0) & known, new, old)

    return jax.lax.cond(taken & (due | anew), look, lambda mean, state: state, slow.mean, state)


def energy_exponent(state: EnergyFallState) -> jax.Array:
    r"""The q with which the energy of the slow mean falls as :math:`t^{-q}`; NaN where unknown.

    It is known from the second measurement on.

    | the t directions since the momentum started | the energy of their mean | q |
    |---|---|---|
    | agree | is constant | 0 |
    | are independent noise | falls as 1/t | 1 |
    | move the parameters to and fro around a stationary point | falls as 1/t^2 | 2 |

    In the last case, at a constant rate, the sum of all directions stays bounded, so their
    mean falls as 1/t.
    """
    known = (state.measurements > 1) & (state.mean_energy > 0)
    exponent = -state.mean_slope / jnp.where(known, state.mean_energy, 1.0)
    return jnp.where(known, exponent, jnp.nan)
