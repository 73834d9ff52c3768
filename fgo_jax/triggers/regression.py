"""The regression behind the trends, with a state of eight numbers in one array."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Regression(NamedTuple):
    """Exponentially weighted least squares of a series on a time axis.

    It keeps means and centred moments, not raw sums: late in a run the variance of the time
    inside the window is far below its square, and float32 sums would lose it. The state is
    these numbers in one array, [8], float32: XLA computes an array in one kernel, and each
    scalar in one of its own.
    """

    weight: jax.Array  # [], float32; sum of w
    weight_square: jax.Array  # [], float32; sum of w^2
    last_time: jax.Array  # [], float32
    mean_time: jax.Array  # [], float32
    mean_series: jax.Array  # [], float32
    time_time: jax.Array  # [], float32; sum of w (t - mean)^2
    time_series: jax.Array  # [], float32
    series_series: jax.Array  # [], float32


class Slope(NamedTuple):
    """The slope of the series over the time axis."""

    slope: jax.Array  # [], float32
    error: jax.Array  # [], float32 standard error; inf below three effective points
    points: jax.Array  # [], float32; effective number of points (sum w)^2 / sum w^2


def init() -> jax.Array:
    """A regression of no points, [8]."""
    return jnp.zeros(len(Regression._fields), jnp.float32)


def update(numbers: jax.Array, time: jax.Array, series: jax.Array, memory: float) -> Regression:
    """Adds a point; the weights of older ones fade as exp(-(elapsed time) / memory)."""
    state = Regression(*numbers)
    first = state.weight == 0.0
    elapsed = jnp.where(first, 0.0, jnp.maximum(time - state.last_time, 0.0))
    fade = jnp.exp(-elapsed / memory)
    weight = fade * state.weight + 1.0
    time_gap = time - state.mean_time
    series_gap = series - state.mean_series
    share = fade * state.weight / weight  # of the old mean in the new one
    return Regression(
        weight=weight,
        weight_square=fade**2 * state.weight_square + 1.0,
        last_time=jnp.asarray(time, jnp.float32),
        mean_time=state.mean_time + time_gap / weight,
        mean_series=state.mean_series + series_gap / weight,
        time_time=fade * state.time_time + share * time_gap**2,
        time_series=fade * state.time_series + share * time_gap * series_gap,
        series_series=fade * state.series_series + share * series_gap**2,
    )


def slope(state: Regression) -> Slope:
    """The slope, with a standard error from the residuals.

    With weights w, n = (sum w)^2 / sum w^2 effective points and residual variance s^2, the
    variance of the slope is s^2 / ((n - 2) var_w(t)). That takes the spread of t under w in place
    of that under w^2, which is half as large where weights fade. So the error is up to sqrt(2)
    times too large.
    """
    points = state.weight**2 / jnp.maximum(state.weight_square, 1e-30)
    spread = state.time_time / jnp.maximum(state.weight, 1e-30)
    enough = (points > 3.0) & (spread > 0.0)
    safe = jnp.where(enough, state.time_time, 1.0)
    slope = state.time_series / safe
    residual = jnp.maximum(state.series_series - slope * state.time_series, 0.0)
    variance = residual / jnp.maximum(state.weight, 1e-30)
    error = jnp.sqrt(variance / (jnp.where(enough, spread, 1.0) * jnp.maximum(points - 2.0, 1.0)))
    return Slope(
        slope=jnp.where(enough, slope, 0.0),
        error=jnp.where(enough, error, jnp.inf),
        points=points,
    )


def margin(slope: Slope, z: Any) -> jax.Array:
    r"""Half the width of the slope's confidence interval.

    The standard error is itself estimated, with :math:`\nu = n - 2` degrees of freedom, and
    from few points it is often too small. So z, a normal quantile, becomes Student's quantile
    t of the same level, and the half-width is t times the error:

    .. math:: t = \sqrt{\nu (e^{q^2 / \nu} - 1)}, \qquad q = z \, \frac{8 \nu + 3}{8 \nu + 1}

    From two degrees of freedom on, t is at most 2 % too large for z up to 1.645, and a fifth
    too large at z = 3.

    Source: Wallace (1959), "Bounds on normal approximations to Student's and the chi-square
    distributions", inverted.
    """
    freedom = jnp.maximum(slope.points - 2.0, 1.0)
    normal = z * (8.0 * freedom + 3.0) / (8.0 * freedom + 1.0)
    # Bounded, so that it stays finite: a perfect fit (error 0) then has margin 0, not NaN.
    exponent = jnp.minimum(normal**2 / freedom, 80.0)
    return jnp.sqrt(freedom * jnp.expm1(exponent)) * slope.error
