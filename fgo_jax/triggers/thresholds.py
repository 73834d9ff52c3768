"""Conditions on how long a phase has run, or on the level of a signal."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.triggers.signal import Observation
from fgo_jax.triggers.trigger import Judged, Trigger, condition


def _nothing() -> tuple[()]:
    return ()


def after(steps: int) -> Trigger:
    """Holds once the phase has made ``steps`` updates, so it makes one more.

    Args:
      steps: updates since the phase began.

    Returns:
      A :class:`Trigger` that reads no signal.

    Raises:
      ValueError: for a number that is not an integer >= 0, or beyond int32.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.stall("intrinsic_dimension") | fgo.triggers.after(10_000)

    Source: the definition above.
    """
    _checks.integer("steps", steps, 0)

    def judge(observation: Observation, memory: Any) -> Judged:
        holds = observation.phase_step >= steps
        return jnp.asarray(True), holds, ~holds, memory

    return condition("after", _nothing, judge, bound=steps)


def never() -> Trigger:
    """Never holds: the phase is left by a deadline or by hand only.

    Returns:
      A :class:`Trigger` that reads no signal.

    Example:
      >>> import fgo_jax as fgo
      >>> never = fgo.triggers.never()
      >>> tx = fgo.target_acquisition(1e-3, triggers={"reask": never}, total_steps=10_000)

    Source: the definition above.
    """

    def judge(observation: Observation, memory: Any) -> Judged:
        del observation
        no = jnp.asarray(False)
        return ~no, no, ~no, memory

    return condition("never", _nothing, judge)


def _threshold(
    name: str, signal: str, sign: float, threshold: Any, z: float, patience: int
) -> Trigger:
    _checks.finite("threshold", threshold)
    _checks.non_negative("z", z)

    def judge(observation: Observation, memory: Any) -> Judged:
        value, error, fresh = observation.signals[signal]
        margin = z * jnp.where(jnp.isnan(error), 0.0, error)
        excess = sign * (value - threshold)
        evaluated = fresh & jnp.isfinite(value)
        return evaluated, excess - margin > 0, excess + margin <= 0, memory

    return condition(
        f"{signal}_{name}",
        _nothing,
        judge,
        signals=(signal,),
        patience=patience,
        bound=threshold,
    )


def above(signal: str, threshold: float, *, z: float = 1.645, patience: int = 2) -> Trigger:
    r"""Holds while the lower confidence bound of a signal is above ``threshold``.

    .. math:: \text{holds: } x - z\,\sigma > \tau,
              \qquad \text{does not hold: } x + z\,\sigma \le \tau

    with the value x, its standard error :math:`\sigma` and the threshold :math:`\tau`. In
    between the verdict is unknown. A signal without a known error (NaN: the loss, or a probe
    that draws once) is compared by its value alone. One with an infinite error is unknown.

    Args:
      signal: the name of a signal of the probe, or ``loss`` or ``validation``.
      threshold: in the signal's unit.
      z: width of the bound, in standard errors; 1.645 is the one-sided 95 % bound.
      patience: measurements in a row at which the bound must hold.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: for a threshold that is not finite, a negative z, or a patience that is not a
        positive integer.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.above("intrinsic_dimension", 50.0)

    Source: the one-sided confidence bound of a normal mean.
    """
    return _threshold("above", signal, 1.0, threshold, z, patience)


def below(signal: str, threshold: float, *, z: float = 1.645, patience: int = 2) -> Trigger:
    r"""Holds while the upper confidence bound of a signal is below ``threshold``.

    .. math:: \text{holds: } x + z\,\sigma < \tau,
              \qquad \text{does not hold: } x - z\,\sigma \ge \tau

    It is the mirror image of :func:`above`.

    Args:
      signal: the name of a signal of the probe, or ``loss`` or ``validation``.
      threshold: in the signal's unit.
      z: width of the bound, in standard errors; 1.645 is the one-sided 95 % bound.
      patience: measurements in a row at which the bound must hold.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: for a threshold that is not finite, a negative z, or a patience that is not a
        positive integer.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.below("agreement", 0.75)

    Source: the one-sided confidence bound of a normal mean.
    """
    return _threshold("below", signal, -1.0, threshold, z, patience)


class PlateauState(NamedTuple):
    """The lowest value so far."""

    best: jax.Array  # [], float32


def plateau(signal: str, *, patience: int = 10, rtol: float = 1e-3) -> Trigger:
    r"""Holds when a signal has not improved, that is fallen, for ``patience`` measurements.

    .. math:: \text{improvement: } x < b - \epsilon\,|b|

    with the best value b so far and the relative tolerance :math:`\epsilon`. The tolerance is
    relative to the size of b, so signals below zero work too. :func:`fgo_jax.phased` says which
    ``validation_value`` counts as a measurement.

    Args:
      signal: the name of a signal of the probe, or ``loss`` or ``validation``.
      patience: measurements in a row without an improvement.
      rtol: the smallest relative improvement that counts.

    Returns:
      A :class:`Trigger` that reads ``signal``.

    Raises:
      ValueError: for a negative ``rtol``, or a patience that is not a positive integer.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.plateau("validation", patience=5)

    Source: Prechelt (1998), "Early stopping - but when?".
    """
    _checks.non_negative("rtol", rtol)

    def judge(observation: Observation, state: PlateauState) -> Judged:
        value, _, fresh = observation.signals[signal]
        better = value < state.best - rtol * jnp.where(
            jnp.isfinite(state.best), jnp.abs(state.best), 0.0
        )
        state = PlateauState(best=jnp.where(better, value, state.best))
        return fresh & jnp.isfinite(value), ~better, better, state

    unbeaten = functools.partial(jnp.full, [], jnp.inf, jnp.float32)
    return condition(
        f"{signal}_plateau",
        lambda: PlateauState(best=unbeaten()),
        judge,
        signals=(signal,),
        patience=patience,
    )
