"""Averages over the measurements of the Gram probe, and the signals read from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.rows import fitting_unit, trusted_error
from fgo_jax.probes.probe import Estimate


class GramState(NamedTuple):
    """Averages over the measurements so far: of the whole tree, then of each group.

    The four moments are (tr C)^2, tr C^2, tr Cov g and |E g|^2.
    """

    evaluations: jax.Array  # [], int32; measurements that entered the averages
    held: jax.Array  # [], int32; measurements that gave no new dimension
    unit: jax.Array  # [1 + groups], float32; about the trace, divided out: squares stay in range
    moments: jax.Array  # [1 + groups, 4], float32; weighted sums
    covariance: jax.Array  # [1 + groups, 4, 4], float32; of these sums
    eigen: jax.Array  # [3], float32; weighted: top eigenvalue, energy rank, its fraction
    eigen_variance: jax.Array  # [3], float32
    weight: jax.Array  # [], float32; sum of the weights
    ratios: jax.Array  # [1 + groups, 2, 2], float32; dimension and noise scale, with errors
    new_dimensions: jax.Array  # [1 + groups], int32; measurements that gave a new one
    rank_ceiling: jax.Array  # [], float32; the rank of white noise; inf for no ceiling


def init(slot_count: int) -> GramState:
    """Averages of no measurement, for the whole tree and the groups: `slot_count` together."""
    return GramState(
        evaluations=jnp.zeros([], jnp.int32),
        held=jnp.zeros([], jnp.int32),
        unit=jnp.zeros([slot_count], jnp.float32),
        moments=jnp.zeros([slot_count, 4], jnp.float32),
        covariance=jnp.zeros([slot_count, 4, 4], jnp.float32),
        eigen=jnp.zeros([3], jnp.float32),
        eigen_variance=jnp.zeros([3], jnp.float32),
        weight=jnp.zeros([], jnp.float32),
        ratios=jnp.full([slot_count, 2, 2], jnp.nan, jnp.float32),
        new_dimensions=jnp.zeros([slot_count], jnp.int32),
        rank_ceiling=jnp.full([], jnp.inf, jnp.float32),
    )


def in_unit_of(state: GramState, traces: jax.Array) -> GramState:
    """The averages in a unit that suits new traces, [1 + groups], as well."""
    weight = jnp.where(state.weight > 0.0, state.weight, 1.0)
    unit, ratio = fitting_unit(state.unit, traces, state.moments[:, 2] / weight)
    squares = jnp.square(ratio)
    factors = jnp.stack([squares, squares, ratio, ratio], axis=1)
    return state._replace(
        unit=unit,
        moments=factors * state.moments,
        covariance=factors[:, :, None] * factors[:, None, :] * state.covariance,
        eigen=state.eigen.at[0].multiply(ratio[0]),
        eigen_variance=state.eigen_variance.at[0].multiply(squares[0]),
    )


def accumulate(state: GramState, drawn: tuple[jax.Array, ...], smoothing: Any) -> GramState:
    """Adds a measurement: moments, their covariance, eigenvalue numbers, their variances."""
    keep = jnp.asarray(smoothing, jnp.float32)
    add = 1.0 - keep
    moments, covariance, eigen, eigen_variance = drawn
    finite = jnp.all(jnp.asarray([jnp.all(jnp.isfinite(item)) for item in drawn[:3]]))
    new = state._replace(
        evaluations=optax.safe_increment(state.evaluations),
        moments=keep * state.moments + add * moments,
        # Measurements are independent, so variances add with squared weights.
        covariance=jnp.square(keep) * state.covariance + jnp.square(add) * covariance,
        eigen=keep * state.eigen + add * eigen,
        eigen_variance=jnp.square(keep) * state.eigen_variance + jnp.square(add) * eigen_variance,
        weight=keep * state.weight + add,
    )
    dimension = _ratio(new.moments, new.covariance, 0, 1)
    noise = _ratio(new.moments, new.covariance, 2, 3)
    known = ~jnp.isnan(dimension[:, 0])
    good = known[0]
    last, last_noise = state.ratios[:, 0], state.ratios[:, 1].at[:, 1].set(jnp.inf)
    dimension = jnp.where(jnp.isnan(dimension), last, dimension)
    # The estimate of the mean gradient's squared length is not positive: the scale has no bound.
    noise = jnp.where(jnp.isnan(noise), last_noise, noise)
    new = new._replace(
        ratios=jnp.stack([dimension, noise], axis=1),
        new_dimensions=state.new_dimensions + known.astype(jnp.int32),
    )
    new = optax.tree.where(finite, new, state)
    return new._replace(held=jnp.where(finite & good, state.held, optax.safe_increment(state.held)))


def _ratio(moments: jax.Array, covariance: jax.Array, top: int, bottom: int) -> jax.Array:
    """[slots, 2]: a ratio of two moments and its first-order error; NaN if not positive."""
    a, b = moments[:, top], moments[:, bottom]
    good = (a > 0.0) & (b > 0.0)
    a, b = jnp.where(good, a, 1.0), jnp.where(good, b, 1.0)
    variance = (
        covariance[:, top, top] / jnp.square(a)
        + covariance[:, bottom, bottom] / jnp.square(b)
        - 2.0 * covariance[:, top, bottom] / (a * b)
    )
    ratio = a / b
    error = ratio * jnp.sqrt(jnp.maximum(variance, 0.0))
    return jnp.where(good[:, None], jnp.stack([ratio, error], axis=1), jnp.nan)


def read(
    state: GramState, *, names: tuple[str, ...], row_size: int, centred: bool
) -> dict[str, Estimate]:
    """The signals, in the units of one example's gradient."""
    weight = jnp.where(state.weight > 0.0, state.weight, jnp.nan)
    eigen = state.eigen / weight
    eigen_error = jnp.sqrt(state.eigen_variance) / weight
    rank_error, fraction_error = trusted_error(eigen[1], eigen_error[1:], state.rank_ceiling)
    scales = row_size * state.unit
    # tr E gg^T = tr Cov g + |E g|^2.
    parts = jnp.array([0.0, 0.0, 1.0, 0.0 if centred else 1.0])
    estimates = {
        "top_eigenvalue": Estimate(scales[0] * eigen[0], scales[0] * eigen_error[0]),
        "energy_rank": Estimate(eigen[1], rank_error),
        "energy_fraction": Estimate(eigen[2], fraction_error),
    }
    for index, name in enumerate(("", *(f"/{name}" for name in names))):
        dimension, noise = state.ratios[index]
        trace = jnp.sum(parts * state.moments[index]) / weight
        variance = jnp.sum(parts[:, None] * state.covariance[index] * parts[None, :])
        error, scale = jnp.sqrt(jnp.maximum(variance, 0.0)) / weight, scales[index]
        estimates[f"intrinsic_dimension{name}"] = Estimate(dimension[0], dimension[1])
        estimates[f"trace{name}"] = Estimate(scale * trace, scale * error)
        estimates[f"noise_scale{name}"] = Estimate(row_size * noise[0], row_size * noise[1])
    return estimates
