"""Conditions on the slope of a signal over the logarithm of the steps taken."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.triggers import regression
from fgo_jax.triggers.signal import Observation
from fgo_jax.triggers.trigger import Judged, Trigger, condition

# (slope, margin) -> (holds, fails)
Verdicts = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

# Below this, sums of squares over a whole run fit in float32. An overflow would stay in the
# regression forever, and no verdict could follow.
LARGEST = 1e15


def _trend(
    name: str,
    signal: str,
    verdicts: Verdicts,
    *,
    logarithm: bool,
    z: float,
    memory: float,
    patience: int,
    min_points: int,
) -> Trigger:
    _checks.non_negative("z", z)
    _checks.positive("memory", memory)
    _checks.integer("min_points", min_points, 4)

    def judge(observation: Observation, state: jax.Array) -> Judged:
        value, _, fresh = observation.signals[signal]
        usable = (value > 0) & jnp.isfinite(value) if logarithm else jnp.abs(value) < LARGEST
        evaluated = fresh & usable
        safe = jnp.where(usable, value, 1.0)
        time = jnp.log(observation.total_step.astype(jnp.float32) + 1.0)
        series = jnp.log(safe) if logarithm else safe
        numbers = regression.update(state, time, series, memory)
        slope = regression.slope(numbers)
        known = slope.points >= min_points
        holds, fails = verdicts(slope.slope, regression.margin(slope, z))
        return evaluated, holds & known, fails & known, jnp.stack(numbers)

    name = f"{signal}_{name}"
    return condition(name, regression.init, judge, signals=(signal,), patience=patience)


def stall(
    signal: str,
    tolerance: float = 1.0,
    *,
    z: float = 1.282,
    memory: float = 0.7,
    patience: int = 2,
    min_points: int = 4,
) -> Trigger:
    r"""Holds when a positive signal has stopped changing, in either direction.

    .. math:: \text{holds: } |s| + m < \tau, \qquad \text{does not hold: } |s| - m > \tau,
              \qquad s = \frac{d \log x}{d \log t}

    This is an equivalence test. The log of the signal is regressed on the log of the steps
    t, counted from the start of training. Old measurements fade: a weight falls by a factor
    of e each time that log t grows by ``memory``. The confidence interval :math:`s \pm m` of
    the slope must lie inside :math:`\pm\tau`. Noise widens the interval, so a signal does
    not stall by being noisy.

    Args:
      signal: the name of a positive signal; other values are not evaluated.
      tolerance: :math:`\tau`, the largest slope that counts as no change. A signal
        proportional to the steps taken has slope 1.
      z: normal quantile of the interval. The interval is Student's at the same level, with
        as many degrees of freedom as effective points less two. It is up to 1.4 times too wide:
        1.282 tests each side at 10 % at most, with many points at 4 %.
      memory: of the regression, in units of log t.
      patience: measurements in a row.
      min_points: effective measurements below which the verdict is unknown.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: for a tolerance or memory that is not positive, a negative z, fewer than
        four points, or a patience that is not a positive integer.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.stall("intrinsic_dimension", tolerance=0.5)

    Source: Schuirmann (1987), on two one-sided tests.
    """
    _checks.positive("tolerance", tolerance)

    def verdicts(slope: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.abs(slope) + margin < tolerance, jnp.abs(slope) - margin > tolerance

    return _trend(
        "stall",
        signal,
        verdicts,
        logarithm=True,
        z=z,
        memory=memory,
        patience=patience,
        min_points=min_points,
    )


def stopped_falling(
    signal: str,
    tolerance: float = 1.0,
    *,
    z: float = 1.282,
    memory: float = 0.7,
    patience: int = 2,
    min_points: int = 4,
) -> Trigger:
    r"""Holds when a positive signal falls slowly or rises.

    .. math:: \text{holds: } s - m > -\tau, \qquad \text{does not hold: } s + m < -\tau,
              \qquad s = \frac{d \log x}{d \log t}

    It is the lower half of :func:`stall`, with the same regression. It also holds while
    the signal rises.

    Args:
      signal: the name of a positive signal; other values are not evaluated.
      tolerance: :math:`\tau`, the fastest fall that counts as slow.
      z: normal quantile of the confidence interval; 1.282 tests at 10 %.
      memory: of the regression, in units of log t.
      patience: measurements in a row.
      min_points: effective measurements below which the verdict is unknown.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: as :func:`stall`.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.stopped_falling("intrinsic_dimension")

    Source: Schuirmann (1987); one of the two one-sided tests.
    """
    _checks.positive("tolerance", tolerance)

    def verdicts(slope: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
        return slope - margin > -tolerance, slope + margin < -tolerance

    return _trend(
        "stopped_falling",
        signal,
        verdicts,
        logarithm=True,
        z=z,
        memory=memory,
        patience=patience,
        min_points=min_points,
    )


def decreasing(
    signal: str,
    *,
    z: float = 1.645,
    memory: float = 0.5,
    patience: int = 2,
    min_points: int = 8,
) -> Trigger:
    r"""Holds while the upper confidence bound of a signal's slope is negative.

    .. math:: \text{holds: } s + m < 0, \qquad \text{does not hold: } s + m \ge 0,
              \qquad s = \frac{d x}{d \log t}

    The regression is that of :func:`stall`, but of the signal itself: a loss may be
    negative, so its log may not exist.

    Args:
      signal: the name of a signal of any sign; numbers beyond 1e15 are not evaluated.
      z: normal quantile of the confidence bound; 1.645 is the one-sided 95 % bound.
      memory: of the regression, in units of log t.
      patience: measurements in a row.
      min_points: effective measurements below which the verdict is unknown.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: as :func:`stall`.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.decreasing("loss") & fgo.triggers.after(1000)

    Source: the one-sided t-test of a regression's slope.
    """

    def verdicts(slope: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
        return slope + margin < 0, slope + margin >= 0

    return _trend(
        "decreasing",
        signal,
        verdicts,
        logarithm=False,
        z=z,
        memory=memory,
        patience=patience,
        min_points=min_points,
    )


def increasing(
    signal: str,
    *,
    z: float = 1.645,
    memory: float = 0.5,
    patience: int = 2,
    min_points: int = 8,
) -> Trigger:
    r"""Holds while the lower confidence bound of a signal's slope is positive.

    .. math:: \text{holds: } s - m > 0, \qquad \text{does not hold: } s - m \le 0,
              \qquad s = \frac{d x}{d \log t}

    It is the mirror image of :func:`decreasing`.

    Args:
      signal: the name of a signal of any sign; numbers beyond 1e15 are not evaluated.
      z: normal quantile of the confidence bound; 1.645 is the one-sided 95 % bound.
      memory: of the regression, in units of log t.
      patience: measurements in a row.
      min_points: effective measurements below which the verdict is unknown.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: as :func:`stall`.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = ~fgo.triggers.increasing("loss")

    Source: the one-sided t-test of a regression's slope.
    """

    def verdicts(slope: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
        return slope - margin > 0, slope - margin <= 0

    return _trend(
        "increasing",
        signal,
        verdicts,
        logarithm=False,
        z=z,
        memory=memory,
        patience=patience,
        min_points=min_points,
    )
