"""Conditions on the slope of a signal over the logarithm of the steps taken."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.triggers import regression
from fgo_jax.triggers.trigger import Observation, Trigger, condition


def _trend(
    name: str,
    signal: str,
    verdicts: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    logarithm: bool,
    z: float,
    memory: float,
    patience: int,
    min_points: int,
) -> Trigger:
    _checks.non_negative("z", z)
    _checks.positive("memory", memory)
    _checks.integer("min_points", min_points, 4)

    def judge(observation: Observation, state: regression.Regression):
        value, _, fresh = observation.signals[signal]
        usable = jnp.isfinite(value) & ((value > 0) if logarithm else True)
        evaluated = fresh & usable
        safe = jnp.where(usable, value, 1.0)
        time = jnp.log(observation.total_step.astype(jnp.float32) + 1.0)
        state = regression.update(state, time, jnp.log(safe) if logarithm else safe, memory)
        slope = regression.slope(state)
        known = slope.points >= min_points
        holds, fails = verdicts(slope.slope, regression.margin(slope, z))
        return evaluated, holds & known, fails & known, state

    return condition(f"{name}({signal})", regression.init, judge, (signal,), patience)


def stall(
    signal: str,
    tolerance: float = 1.0,
    z: float = 1.282,
    memory: float = 0.7,
    patience: int = 2,
    min_points: int = 4,
) -> Trigger:
    r"""Holds when a positive signal has stopped moving, in either direction.

    An equivalence test: the log of the signal is regressed on the log of the steps
    taken, with weights that fade over ``memory`` factors of e of training, and the
    confidence interval of the slope must lie inside :math:`\pm` ``tolerance``. A noisy
    signal therefore does not stall by being noisy.

    Args:
      signal: name of a positive signal.
      tolerance: largest :math:`|d \log x / d \log t|` that counts as standing still: 1 is
        the slope of an x proportional to the steps taken.
      z: normal quantile of the interval, which is Student's with as many degrees of freedom
        as there are effective points less two; 1.282 tests each side at 10 %.
      memory: in units of log t.
      patience: measurements in a row.
      min_points: effective measurements before anything is said.

    Raises:
      ValueError: for a tolerance or memory that is not positive, a negative z, or fewer than
        four points.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.stall("intrinsic_dimension", tolerance=0.5)

    Source: two one-sided tests, Schuirmann (1987).
    """
    _checks.positive("tolerance", tolerance)

    def verdicts(slope: jax.Array, margin: jax.Array):
        return jnp.abs(slope) + margin < tolerance, jnp.abs(slope) - margin > tolerance

    return _trend("stall", signal, verdicts, True, z, memory, patience, min_points)


def stopped_falling(
    signal: str,
    tolerance: float = 1.0,
    z: float = 1.282,
    memory: float = 0.7,
    patience: int = 2,
    min_points: int = 4,
) -> Trigger:
    r"""Holds when a positive signal falls no faster than ``tolerance``; it may rise.

    The lower half of :func:`stall`: the slope's lower confidence bound must exceed
    ``-tolerance``. This is the end of a collapse, whatever follows it. Arguments and errors
    as there.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.stopped_falling("intrinsic_dimension")
    """
    _checks.positive("tolerance", tolerance)

    def verdicts(slope: jax.Array, margin: jax.Array):
        return slope - margin > -tolerance, slope + margin < -tolerance

    return _trend("stopped_falling", signal, verdicts, True, z, memory, patience, min_points)


def decreasing(
    signal: str, z: float = 1.645, memory: float = 0.5, patience: int = 2, min_points: int = 8
) -> Trigger:
    """Holds while the upper confidence bound of a signal's slope is negative.

    The signal itself (not its log: a loss may be negative) is regressed on the log of
    the steps taken; arguments and errors as in :func:`stall`.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.decreasing("loss") & fgo.triggers.after(1000)
    """

    def verdicts(slope: jax.Array, margin: jax.Array):
        return slope + margin < 0, slope + margin >= 0

    return _trend("decreasing", signal, verdicts, False, z, memory, patience, min_points)


def increasing(
    signal: str, z: float = 1.645, memory: float = 0.5, patience: int = 2, min_points: int = 8
) -> Trigger:
    """Holds while the lower confidence bound of a signal's slope is positive.

    The mirror image of :func:`decreasing`.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = ~fgo.triggers.increasing("loss")
    """

    def verdicts(slope: jax.Array, margin: jax.Array):
        return slope - margin > 0, slope - margin <= 0

    return _trend("increasing", signal, verdicts, False, z, memory, patience, min_points)
