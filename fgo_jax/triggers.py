"""When a phase ends: pure (init, update) pairs over named signals, composed with & | ~.

A trigger's verdict is 1 (its condition holds), -1 (it does not) or 0 (too little is
known), and the combinators are those of three-valued logic (Kleene): ``&`` is the
minimum, ``|`` the maximum, ``~`` the negative. A phase ends on 1 only, so a signal that
was never measured, or is NaN, neither ends a phase nor, negated, ends it by accident. A
measurement that its probe does not trust (an infinite standard error) makes every
condition on it unknown until the next one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks, detectors


class Signal(NamedTuple):
    """One number of this step."""

    value: jax.Array  # [], float32
    error: jax.Array  # [], float32 standard error; NaN where none is known, inf: no trust
    fresh: jax.Array  # [], bool; measured in this very step


class Observation(NamedTuple):
    """What triggers see: only replicated scalars, so all devices decide alike."""

    signals: dict[str, Signal]
    phase_step: jax.Array  # [], int32; updates since the phase began
    total_step: jax.Array  # [], int32; updates since training began


class ConditionState(NamedTuple):
    """One named condition."""

    verdict: jax.Array  # [], int32; 1 holds, -1 does not, 0 unknown
    streak: jax.Array  # [], int32; consecutive evaluations at which it held
    memory: Any  # the condition's own statistics


State = dict[str, ConditionState]


@dataclasses.dataclass(frozen=True)
class Trigger:
    """A condition on signals.

    Attributes:
      init: `() -> state`, a dict of one `ConditionState` per named condition, so that
        telemetry can say which of them is missing.
      update: `(observation, state) -> (verdict, state)`.
      signals: the signals it reads.
      optional: those of them that it can do without.
    """

    init: Callable[[], State]
    update: Callable[[Observation, State], tuple[jax.Array, State]]
    signals: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    def __and__(self, other: Trigger) -> Trigger:
        return _combine(jnp.minimum, self, other)

    def __or__(self, other: Trigger) -> Trigger:
        return _combine(jnp.maximum, self, other)

    def __invert__(self) -> Trigger:
        def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
            verdict, state = self.update(observation, state)
            return -verdict, state

        return dataclasses.replace(self, update=update)


def _combine(join: Callable, left: Trigger, right: Trigger) -> Trigger:
    # Two conditions of one name are kept apart by a suffix, decided once, here.
    names = list(left.init())
    renamed: dict[str, str] = {}
    for name in right.init():
        new, copy = name, 2
        while new in names:
            new, copy = f"{name}#{copy}", copy + 1
        names.append(new)
        renamed[name] = new

    def init() -> State:
        return {**left.init(), **{renamed[n]: s for n, s in right.init().items()}}

    def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
        back = {new: old for old, new in renamed.items()}
        mine = {n: s for n, s in state.items() if n not in back}
        verdict, mine = left.update(observation, mine)
        other, others = right.update(
            observation, {back[n]: s for n, s in state.items() if n in back}
        )
        merged = {**mine, **{renamed[n]: s for n, s in others.items()}}
        return join(verdict, other), {name: merged[name] for name in state}

    needed = (left.signals - left.optional) | (right.signals - right.optional)
    signals = left.signals | right.signals
    return Trigger(init, update, signals, signals - needed)


def _condition(
    name: str,
    init_memory: Callable[[], Any],
    judge: Callable[[Observation, Any], tuple[jax.Array, jax.Array, jax.Array, Any]],
    signals: tuple[str, ...] = (),
    patience: int = 1,
) -> Trigger:
    """A leaf: `judge -> (evaluated, holds, fails, memory)`; it holds after `patience` in a row."""
    _checks.integer("patience", patience)

    def init() -> State:
        zero = jnp.zeros([], jnp.int32)
        return {name: ConditionState(zero, zero, init_memory())}

    def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
        old = state[name]
        evaluated, holds, fails, memory = judge(observation, old.memory)
        streak = jnp.where(holds, old.streak + 1, 0)
        verdict = jnp.where(streak >= patience, 1, jnp.where(fails, -1, 0))
        new = ConditionState(verdict.astype(jnp.int32), streak.astype(jnp.int32), memory)
        # Here, for all kinds alike: a trend reads no error, so none of them could tell.
        distrusted = jnp.asarray(False)
        for signal in signals:
            _, error, fresh = observation.signals[signal]
            distrusted |= fresh & jnp.isinf(error)
        evaluated &= ~distrusted
        new = jax.tree.map(lambda a, b: jnp.where(evaluated, a, b).astype(b.dtype), new, old)
        zero = jnp.zeros([], jnp.int32)
        new = new._replace(
            verdict=jnp.where(distrusted, zero, new.verdict),
            streak=jnp.where(distrusted, zero, new.streak),
        )
        return new.verdict, {name: new}

    return Trigger(init, update, frozenset(signals))


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

    return _condition("after", _nothing, judge)


def never() -> Trigger:
    """Never holds: the phase is left by a deadline or by hand only."""

    def judge(observation: Observation, memory: Any):
        del observation
        no = jnp.asarray(False)
        return ~no, no, ~no, memory

    return _condition("never", _nothing, judge)


def _threshold(name: str, signal: str, sign: float, threshold: Any, z: float, patience: int):
    def judge(observation: Observation, memory: Any):
        value, error, fresh = observation.signals[signal]
        margin = z * jnp.where(jnp.isnan(error), 0.0, error)
        excess = sign * (value - threshold)
        evaluated = fresh & jnp.isfinite(value)
        return evaluated, excess - margin > 0, excess + margin <= 0, memory

    return _condition(f"{name}({signal})", _nothing, judge, (signal,), patience)


def above(signal: str, threshold: float, z: float = 1.645, patience: int = 2) -> Trigger:
    """Holds while the lower confidence bound of a signal exceeds ``threshold``.

    The bound is value - z * standard error; z = 1.645 is the one-sided 95 % bound. It
    must hold at ``patience`` consecutive measurements.
    """
    return _threshold("above", signal, 1.0, threshold, z, patience)


def below(signal: str, threshold: float, z: float = 1.645, patience: int = 2) -> Trigger:
    """Holds while the upper confidence bound of a signal lies under ``threshold``.

    See :func:`above`.
    """
    return _threshold("below", signal, -1.0, threshold, z, patience)


def _trend(
    name: str,
    signal: str,
    verdicts: Callable[[detectors.Slope], tuple[jax.Array, jax.Array]],
    logarithm: bool,
    memory: float,
    patience: int,
    min_points: int,
) -> Trigger:
    _checks.positive("memory", memory)
    _checks.integer("min_points", min_points, 4)

    def judge(observation: Observation, state: detectors.Regression):
        value, _, fresh = observation.signals[signal]
        usable = jnp.isfinite(value) & ((value > 0) if logarithm else True)
        evaluated = fresh & usable
        safe = jnp.where(usable, value, 1.0)
        time = jnp.log(observation.total_step.astype(jnp.float32) + 1.0)
        state = detectors.regression_update(
            state, time, jnp.log(safe) if logarithm else safe, memory
        )
        slope = detectors.regression_slope(state)
        known = slope.points >= min_points
        holds, fails = verdicts(slope)
        return evaluated, holds & known, fails & known, state

    return _condition(f"{name}({signal})", detectors.regression_init, judge, (signal,), patience)


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
    confidence interval slope :math:`\pm z` standard errors must lie inside
    :math:`\pm` ``tolerance``. A noisy signal therefore does not stall by being noisy.

    Args:
      signal: name of a positive signal.
      tolerance: largest :math:`|d \log x / d \log t|` that counts as standing still: 1 is
        the slope of an x proportional to the steps taken.
      z: width of the interval; 1.282 tests each side at 10 %.
      memory: in units of log t.
      patience: measurements in a row.
      min_points: effective measurements before anything is said.
    """
    _checks.positive("tolerance", tolerance)

    def verdicts(slope: detectors.Slope):
        inside = jnp.abs(slope.slope) + z * slope.error < tolerance
        outside = jnp.abs(slope.slope) - z * slope.error > tolerance
        return inside, outside

    return _trend("stall", signal, verdicts, True, memory, patience, min_points)


def stopped_falling(
    signal: str,
    tolerance: float = 1.0,
    z: float = 1.282,
    memory: float = 0.7,
    patience: int = 2,
    min_points: int = 4,
) -> Trigger:
    r"""Holds when a positive signal falls no faster than ``tolerance``; it may rise.

    The lower half of :func:`stall`: slope minus z standard errors must exceed
    ``-tolerance``. This is the end of a collapse, whatever follows it.
    """
    _checks.positive("tolerance", tolerance)

    def verdicts(slope: detectors.Slope):
        lower = slope.slope - z * slope.error
        upper = slope.slope + z * slope.error
        return lower > -tolerance, upper < -tolerance

    return _trend("stopped_falling", signal, verdicts, True, memory, patience, min_points)


def decreasing(
    signal: str, z: float = 1.645, memory: float = 0.5, patience: int = 2, min_points: int = 8
) -> Trigger:
    """Holds while the upper confidence bound of a signal's slope is negative.

    The signal itself (not its log: a loss may be negative) is regressed on the log of
    the steps taken; arguments as in :func:`stall`.
    """

    def verdicts(slope: detectors.Slope):
        upper = slope.slope + z * slope.error
        return upper < 0, upper >= 0

    return _trend("decreasing", signal, verdicts, False, memory, patience, min_points)


def increasing(
    signal: str, z: float = 1.645, memory: float = 0.5, patience: int = 2, min_points: int = 8
) -> Trigger:
    """Holds while the lower confidence bound of a signal's slope is positive.

    The mirror image of :func:`decreasing`.
    """

    def verdicts(slope: detectors.Slope):
        lower = slope.slope - z * slope.error
        return lower > 0, lower <= 0

    return _trend("increasing", signal, verdicts, False, memory, patience, min_points)


class PlateauState(NamedTuple):
    best: jax.Array  # [], float32


def plateau(signal: str, patience: int = 10, rtol: float = 1e-3) -> Trigger:
    """Holds when a signal has not improved (fallen) for ``patience`` measurements.

    An improvement is a fall by more than ``rtol * |best|``: relative to the size of
    the best value, so that metrics below zero work too.
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
    return _condition(
        f"plateau({signal})", lambda: PlateauState(best=init()), judge, (signal,), patience
    )


def if_given(trigger: Trigger, signal: str, otherwise: int) -> Trigger:
    """A trigger with a fixed verdict in a training loop that never passes ``signal``.

    Whether ``value=`` is passed is known when the step is traced, not before.

    Args:
      trigger: used where the signal is there.
      signal: "loss" or "validation".
      otherwise: 1 counts as holding, 0 as unknown, -1 as not holding.
    """

    def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
        if signal in observation.signals:
            return trigger.update(observation, state)
        verdict = jnp.full([], otherwise, jnp.int32)
        return verdict, {name: old._replace(verdict=verdict) for name, old in state.items()}

    return dataclasses.replace(trigger, update=update, optional=trigger.optional | {signal})
