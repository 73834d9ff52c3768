"""Averages over the measurements of the Hutchinson probe, and the signals read from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.rows import fitting_unit, power_below
from fgo_jax.probes.probe import Estimate


class HutchinsonState(NamedTuple):
    """Averages over the measurements so far: of the whole operator, then of each group.

    The three moments are tr F, (tr F)^2 and tr F^2.
    """

    evaluations: jax.Array  # [], int32; measurements that entered the averages
    held: jax.Array  # [], int32; measurements that gave no new dimension
    unit: jax.Array  # [1 + groups], float32; of F, so that squares stay in range
    moments: jax.Array  # [1 + groups, 3], float32; weighted sums
    covariance: jax.Array  # [1 + groups, 3, 3], float32; of these sums, over probe vectors
    weight: jax.Array  # [], float32; sum of the weights
    dimension: jax.Array  # [1 + groups, 2], float32; last good ratio and its standard error
    new_dimensions: jax.Array  # [1 + groups], int32; measurements that gave a new one


def init(slot_count: int) -> HutchinsonState:
    """Averages of no measurement, for the operator and the groups: `slot_count` together."""
    return HutchinsonState(
        evaluations=jnp.zeros([], jnp.int32),
        held=jnp.zeros([], jnp.int32),
        unit=jnp.zeros([slot_count], jnp.float32),
        moments=jnp.zeros([slot_count, 3], jnp.float32),
        covariance=jnp.zeros([slot_count, 3, 3], jnp.float32),
        weight=jnp.zeros([], jnp.float32),
        dimension=jnp.full([slot_count, 2], jnp.nan, jnp.float32),
        new_dimensions=jnp.zeros([slot_count], jnp.int32),
    )


def in_unit_of(state: HutchinsonState, sizes: jax.Array) -> HutchinsonState:
    """The averages in a unit that suits a new F of these sizes, [1 + groups], as well."""
    weight = jnp.where(state.weight > 0.0, state.weight, 1.0)
    average = power_below(jnp.sqrt(jnp.maximum(state.moments[:, 2] / weight, 0.0)))
    unit, ratio = fitting_unit(state.unit, sizes, average)
    factors = jnp.stack([ratio, jnp.square(ratio), jnp.square(ratio)], axis=1)
    return state._replace(
        unit=unit,
        moments=factors * state.moments,
        covariance=factors[:, :, None] * factors[:, None, :] * state.covariance,
    )


def accumulate(
    state: HutchinsonState, moments: jax.Array, covariance: jax.Array, smoothing: Any
) -> HutchinsonState:
    """Adds a measurement: moments [slots, 3], covariance [slots, 3, 3], in the state's unit."""
    keep = jnp.asarray(smoothing, jnp.float32)
    add = 1.0 - keep
    finite = jnp.all(jnp.isfinite(moments)) & jnp.all(jnp.isfinite(covariance))
    new = state._replace(
        evaluations=optax.safe_increment(state.evaluations),
        moments=keep * state.moments + add * moments,
        # Measurements draw independent vectors, so variances add with squared weights.
        covariance=jnp.square(keep) * state.covariance + jnp.square(add) * covariance,
        weight=keep * state.weight + add,
    )
    dimension = jax.vmap(_dimension)(new.moments / new.weight, new.covariance / new.weight**2)
    known = ~jnp.isnan(dimension[:, 0])
    good = known[0]
    new = new._replace(
        dimension=jnp.where(known[:, None], dimension, state.dimension),
        new_dimensions=state.new_dimensions + known.astype(jnp.int32),
    )
    new = optax.tree.where(finite, new, state)
    return new._replace(held=jnp.where(finite & good, state.held, optax.safe_increment(state.held)))


def _dimension(moments: jax.Array, covariance: jax.Array) -> jax.Array:
    """[2]: the ratio of two moments and its error; NaN where they are not both positive."""
    _, square, denominator = moments
    good = (square > 0.0) & (denominator > 0.0)
    square, denominator = jnp.where(good, square, 1.0), jnp.where(good, denominator, 1.0)
    ratio = square / denominator
    # The relative error of N / D is the standard deviation of dN / N - dD / D.
    slope = jnp.stack([jnp.float32(0.0), 1.0 / square, -1.0 / denominator])
    variance = jnp.sum(slope[:, None] * covariance * slope[None, :])
    error = ratio * jnp.sqrt(jnp.maximum(variance, 0.0))
    return jnp.where(good, jnp.stack([ratio, error]), jnp.nan)


def _skewed(mean: jax.Array, error: jax.Array) -> jax.Array:
    """An error as wide as the upper half of the 95 % interval on a log scale.

    A mean of few squares is skewed: where it comes out low, so does its spread.
    """
    relative = jnp.minimum(1.96 * error / jnp.maximum(jnp.abs(mean), 1e-30), 20.0)
    return error * jnp.where(relative > 1e-3, jnp.expm1(relative) / relative, 1.0)


def _in_units(value: jax.Array, error: jax.Array, unit: jax.Array, power: int) -> Estimate:
    """An estimate times a power of the unit; NaN where float32 does not hold it."""
    pair = scaled = jnp.stack([value, error])
    for _ in range(power):
        scaled = scaled * unit
    known = jnp.all(jnp.isfinite(scaled) & ((scaled != 0.0) | (pair == 0.0)))
    return Estimate(*jnp.where(known, scaled, jnp.nan))


def read(state: HutchinsonState, *, names: tuple[str, ...]) -> dict[str, Estimate]:
    """The signals of the operator and of each group."""
    weight = jnp.where(state.weight > 0.0, state.weight, jnp.nan)
    estimates = {}
    for index, suffix in enumerate(("", *(f"/{name}" for name in names))):
        means = state.moments[index] / weight
        errors = jnp.sqrt(jnp.diagonal(state.covariance[index])) / weight
        estimates[f"trace{suffix}"] = _in_units(means[0], errors[0], state.unit[index], 1)
        skewed = _skewed(means[2], errors[2])
        estimates[f"trace_square{suffix}"] = _in_units(means[2], skewed, state.unit[index], 2)
        estimates[f"intrinsic_dimension{suffix}"] = Estimate(*state.dimension[index])
    return estimates
