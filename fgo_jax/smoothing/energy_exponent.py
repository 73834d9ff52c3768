"""How fast the squared norm of the slow mean falls, which tells how much progress is left."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.trees import for_sums, sum_squares
from fgo_jax.smoothing.slow_momentum import WINDOW, SlowMomentumState

EVERY = 10  # steps between measurements
MEMORY = 0.25  # of the exponent's running means, as a share of the measurements taken


class EnergyFallState(NamedTuple):
    """Running means behind the exponent. They start again whenever the slow momentum does.

    Two arrays, not five scalars: XLA computes an array in one kernel, and each scalar in one of its
    own.
    """

    counts: jax.Array  # [2], int32; measurements, and directions in the mean at the last one
    means: jax.Array  # [3], float32; energy of the mean at the last measurement, mean energy, slope


def energy_fall_init() -> EnergyFallState:
    """No measurement yet."""
    return EnergyFallState(jnp.zeros(2, jnp.int32), jnp.zeros(3, jnp.float32))


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
    # An empty mean is not measured. It only resets the numbers of an earlier mean.
    due = (seen % EVERY == 0) & ((seen > 0) | (state.counts[0] > 0))

    # Inside a branch, so that there is no pass over the mean between measurements.
    def look(mean: Any, state: EnergyFallState) -> EnergyFallState:
        old = optax.tree.where(anew | (due & (seen == 0)), energy_fall_init(), state)
        measurements, measured_at = old.counts
        last, mean_energy, mean_slope = old.means
        energy = sum_squares(mean)
        # The memory of the mean is c n + 1 directions, so time is log(n + 1/c).
        before, since = (x.astype(jnp.float32) for x in (measured_at, seen - measured_at))
        passed = jnp.log1p(WINDOW * since / (WINDOW * before + 1.0))
        pairs = (measurements - 1).astype(jnp.float32)
        step = jnp.where(pairs >= 0, 1.0 / (MEMORY * jnp.maximum(pairs, 0.0) + 1.0), 0.0)
        slope = (energy - last) / jnp.where(passed > 0, passed, 1.0)
        middle = 0.5 * (energy + last)
        new = EnergyFallState(
            jnp.stack([measurements + 1, seen]),
            jnp.stack(
                [
                    energy,
                    mean_energy + step * (middle - mean_energy),
                    mean_slope + step * (slope - mean_slope),
                ]
            ),
        )
        # An energy beyond float32 is not a measurement.
        known = jnp.all(jnp.isfinite(new.means))
        return optax.tree.where(due & (seen > 0) & known, new, old)

    mean = for_sums(slow.mean)
    return jax.lax.cond(taken & (due | anew), look, lambda mean, state: state, mean, state)


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
    # The state may be a stack of runs, as in `fgo_jax.telemetry`.
    mean_energy, mean_slope = state.means[..., 1], state.means[..., 2]
    known = (state.counts[..., 0] > 1) & (mean_energy > 0)
    exponent = -mean_slope / jnp.where(known, mean_energy, 1.0)
    return jnp.where(known, exponent, jnp.nan)
