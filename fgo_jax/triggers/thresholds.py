"""Conditions on how long a phase has run, or on the level of a signal."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.triggers.trigger import Observation, Trigger, condition


def _nothing() -> tuple[()]:
    return ()


def after(steps: int) -> Trigger:
    """Holds from the ``steps``-th update of the phase on.

    Args:
      steps: updates since the phase began.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.stall("intrinsic_dimension") | fgo.triggers.after(10_000)
    """
    _checks.integer("steps", steps, 0)

    def judge(observation: Observation, memory: Any):
        holds = observation.phase_step >= steps
        return jnp.asarray(True), holds, ~holds, memory

    return condition("after", _nothing, judge)


def never() -> Trigger:
    """Never holds: the phase is left by a deadline or by hand only.

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(
      ...     1e-3, reask_trigger=fgo.triggers.never(), total_steps=10_000
      ... )
    """

    def judge(observation: Observation, memory: Any):
        del observation
        no = jnp.asarray(False)
        return ~no, no, ~no, memory

    return condition("never", _nothing, judge)


def _threshold(name: str, signal: str, sign: float, threshold: Any, z: float, patience: int):
    def judge(observation: Observation, memory: Any):
        value, error, fresh = observation.signals[signal]
        margin = z * jnp.where(jnp.isnan(error), 0.0, error)
        excess = sign * (value - threshold)
        evaluated = fresh & jnp.isfinite(value)
        return evaluated, excess - margin > 0, excess + margin <= 0, memory

    return condition(f"{name}({signal})", _nothing, judge, (signal,), patience)


def above(signal: str, threshold: float, z: float = 1.645, patience: int = 2) -> Trigger:
    """Holds while the lower confidence bound of a signal exceeds ``threshold``.

    The bound is value - z * standard error; z = 1.645 is the one-sided 95 % bound. It
    must hold at ``patience`` consecutive measurements. A signal that comes without an error
    (NaN: the loss, or a probe of a single draw) is taken at its value; one with an infinite
    error is unknown.

    Args:
      signal: name of a signal of the probe, or ``loss`` or ``validation``.
      threshold: in the signal's units.
      z: width of the bound, in standard errors.
      patience: measurements in a row.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.above("intrinsic_dimension", 50.0)
    """
    return _threshold("above", signal, 1.0, threshold, z, patience)


def below(signal: str, threshold: float, z: float = 1.645, patience: int = 2) -> Trigger:
    """Holds while the upper confidence bound of a signal lies under ``threshold``.

    See :func:`above`.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.below("agreement", 0.75)
    """
    return _threshold("below", signal, -1.0, threshold, z, patience)


class PlateauState(NamedTuple):
    best: jax.Array  # [], float32


def plateau(signal: str, patience: int = 10, rtol: float = 1e-3) -> Trigger:
    """Holds when a signal has not improved (fallen) for ``patience`` measurements.

    An improvement is a fall by more than ``rtol * |best|``: relative to the size of
    the best value, so that metrics below zero work too.

    Args:
      signal: as in :func:`above`.
      patience: measurements in a row without an improvement.
      rtol: the least improvement, relative.

    Raises:
      ValueError: for a negative ``rtol``.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.plateau("validation", patience=5)
    """
    _checks.non_negative("rtol", rtol)

    def judge(observation: Observation, state: PlateauState):
        value, _, fresh = observation.signals[signal]
        better = value < state.best - rtol * jnp.where(
            jnp.isfinite(state.best), jnp.abs(state.best), 0.0
        )
        state = PlateauState(best=jnp.where(better, value, state.best))
        return fresh & jnp.isfinite(value), ~better, better, state

    init = functools.partial(jnp.full, [], jnp.inf, jnp.float32)
    return condition(
        f"plateau({signal})", lambda: PlateauState(best=init()), judge, (signal,), patience
    )
