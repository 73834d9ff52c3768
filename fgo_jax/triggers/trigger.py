"""What every trigger is: a pure (init, update) pair over named signals, composed with & | ~.

A trigger's verdict is 1 (its condition holds), -1 (it does not) or 0 (too little is
known), and the combinators are those of three-valued logic (Kleene): ``&`` is the
minimum, ``|`` the maximum, ``~`` the negative. A phase ends on 1 only, so a signal that
was never measured, or is NaN, neither ends a phase nor, negated, ends it by accident. A
measurement that its probe does not trust (an infinite standard error) makes every
condition on it unknown until the next one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks


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


def condition(
    name: str,
    init_memory: Callable[[], Any],
    judge: Callable[[Observation, Any], tuple[jax.Array, jax.Array, jax.Array, Any]],
    signals: tuple[str, ...] = (),
    patience: int = 1,
) -> Trigger:
    """A leaf: `judge -> (evaluated, holds, fails, memory)`; it holds after `patience` in a row."""
    _checks.integer("patience", patience)

    def init() -> State:
        # Two arrays: one buffer in two places could not be donated to a jitted step.
        verdict, streak = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        return {name: ConditionState(verdict, streak, init_memory())}

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
