"""What a trigger is: a pure (init, update) pair over named signals.

Verdicts are 1 (the condition holds), -1 (it does not) and 0 (too little is known). The
combinators are those of Kleene's three-valued logic: ``&`` is the minimum, ``|`` the maximum
and ``~`` the negative. A phase ends on 1 only. A signal that was never measured, or is NaN,
gives 0, so neither a condition on it nor the negation of one can end a phase by accident.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax import _checks
from fgo_jax.triggers import naming
from fgo_jax.triggers.signal import Observation


class ConditionState(NamedTuple):
    """The state of one named condition.

    Attributes:
      counts: [2], int32; verdict and streak in one array, which is one kernel to compile.
      bound: [], float32; the number that the condition compares with, NaN where it has none.
        It is here for people to read; the trigger's own number decides.
      memory: a pytree; the condition's own statistics.
      verdict: [], int32; 1 holds, -1 does not hold, 0 unknown.
      streak: [], int32; the latest evaluations in a row at which the condition held.

    Example:
      >>> import fgo_jax as fgo
      >>> state = fgo.triggers.below("agreement", 0.75).init()
      >>> int(state["agreement_below"].verdict)
      0

    Source: the definition above.
    """

    counts: jax.Array
    bound: jax.Array
    memory: Any

    @property
    def verdict(self) -> jax.Array:
        return self.counts[..., 0]

    @property
    def streak(self) -> jax.Array:
        return self.counts[..., 1]


State = dict[str, ConditionState]
# (evaluated, holds, fails, memory): what a judge says of one step.
Judged = tuple[jax.Array, jax.Array, jax.Array, Any]


@dataclasses.dataclass(frozen=True)
class Trigger:
    """A condition on signals, or several joined with ``&``, ``|`` and ``~``.

    The verdict is 1 (holds), -1 (does not hold) or 0 (unknown). ``a & b`` is the smaller of
    two verdicts, ``a | b`` the larger one, ``~a`` the negative. The functions of this package
    make triggers; :func:`condition` makes one of your own.

    Attributes:
      init: `() -> state`, a dict with one `ConditionState` for each named condition, so that
        telemetry can tell which condition is missing.
      update: `(observation, state) -> (verdict, state)`; the verdict is [], int32.
      signals: the names of the signals it reads; it sees no others.
      optional: those of them that it can do without.

    Example:
      >>> import fgo_jax as fgo
      >>> trigger = fgo.triggers.below("agreement", 0.75) & ~fgo.triggers.increasing("loss")
      >>> sorted(trigger.signals), sorted(trigger.init())
      (['agreement', 'loss'], ['agreement_below', 'not_loss_increasing'])

    Source: Kleene (1952), "Introduction to metamathematics", section 64, on the logic.
    """

    init: Callable[[], State]
    update: Callable[[Observation, State], tuple[jax.Array, State]]
    signals: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()

    def __and__(self, other: Trigger) -> Trigger:
        return _combine(jnp.minimum, self, other) if isinstance(other, Trigger) else NotImplemented

    def __or__(self, other: Trigger) -> Trigger:
        return _combine(jnp.maximum, self, other) if isinstance(other, Trigger) else NotImplemented

    def __bool__(self) -> bool:
        # `a and b` would be b alone, and `not a` False.
        raise TypeError("a trigger is no bool: join triggers with &, | and ~, not and, or, not.")

    def __invert__(self) -> Trigger:
        # A negated condition has a name and a verdict of its own, so that in telemetry 1 always
        # says that what the name says holds.
        names = {naming.negated(name): name for name in condition_names(self)}

        def init() -> State:
            plain = self.init()
            return {new: _opposite(plain[old]) for new, old in names.items()}

        def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
            plain = {old: _opposite(state[new]) for new, old in names.items()}
            verdict, plain = self.update(observation, plain)
            return -verdict, {new: _opposite(plain[old]) for new, old in names.items()}

        return dataclasses.replace(self, init=init, update=update)


def condition_names(trigger: Trigger) -> list[str]:
    """Its conditions' names; makes no array before `jax.distributed.initialize`."""
    names: list[str] = []
    jax.eval_shape(lambda: names.extend(trigger.init()))
    return names


def _opposite(state: ConditionState) -> ConditionState:
    return state._replace(counts=state.counts * np.array([-1, 1], np.int32))


def _combine(
    join: Callable[[jax.Array, jax.Array], jax.Array], left: Trigger, right: Trigger
) -> Trigger:
    # A suffix keeps two conditions of the same name apart. It is chosen once, here.
    taken = condition_names(left)
    renamed: dict[str, str] = {}
    for name in condition_names(right):
        renamed[name] = naming.free(name, taken)
        taken.append(renamed[name])

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
    judge: Callable[[Observation, Any], Judged],
    *,
    signals: tuple[str, ...] = (),
    patience: int = 1,
    bound: Any = math.nan,
) -> Trigger:
    """Makes a trigger from a function of your own.

    ``judge`` runs at every step inside the compiled update, so it must be pure JAX. Its
    memory and the verdict change only at a step that it calls evaluated.

    | the judge says | verdict |
    |---|---|
    | ``holds``, for the ``patience``-th evaluation in a row | 1 |
    | ``fails`` | -1 |
    | neither, or ``holds`` for less long | 0 |
    | not ``evaluated`` | unchanged |

    A fresh measurement of one of ``signals`` with an infinite standard error sets the
    verdict to 0 and starts the count of evaluations again.

    Args:
      name: of the condition, as telemetry shows it: letters, digits, ``_`` and ``/``. One that
        begins with a signal's name lets :func:`fgo_jax.explain` show the signal.
      init_memory: `() -> memory`, a pytree of arrays; ``lambda: ()`` for none.
      judge: `(observation, memory) -> (evaluated, holds, fails, memory)`, with an
        :class:`Observation` and three bools of shape [].
      signals: the names of the signals that ``judge`` reads. :func:`fgo_jax.phased` checks
        that the probe or the training loop provides them.
      patience: how many evaluations in a row must hold.
      bound: a number shown after the name, as in :func:`fgo_jax.explain`; NaN for none.

    Returns:
      A :class:`Trigger` with one named condition.

    Raises:
      ValueError: for a string in place of a tuple of names, and a patience that is not a positive
        integer.

    Example:
      A threshold that ends acquisition once the loss is below 0.5 at two steps in a row:

      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> def judge(observation, memory):
      ...     loss, _, fresh = observation.signals["loss"]
      ...     return fresh, loss < 0.5, loss >= 0.5, memory
      >>> low_loss = fgo.triggers.condition(
      ...     "low_loss", lambda: (), judge, signals=("loss",), patience=2
      ... )
      >>> adam = optax.scale_by_adam()
      >>> tx = fgo.phased(
      ...     [fgo.acquisition(1e-3, transform=adam), fgo.execution(1e-3, transform=adam)],
      ...     [low_loss | fgo.triggers.after(10_000)],
      ... )
      >>> params = jnp.ones(3)
      >>> state = tx.init(params)
      >>> for loss in (0.9, 0.4, 0.3, 0.3):
      ...     _, state = tx.update(params, state, params, value=jnp.float32(loss))
      >>> int(state.clock.phase)
      1

    Source: the definition above.
    """
    _checks.names("signals", signals)
    _checks.integer("patience", patience)

    def shown() -> jax.Array:
        return jnp.asarray(bound, jnp.float32)

    def init() -> State:
        return {name: ConditionState(jnp.zeros(2, jnp.int32), shown(), init_memory())}

    def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
        old = state[name]
        evaluated, holds, fails, memory = judge(observation, old.memory)
        streak = jnp.where(holds, optax.safe_increment(old.streak), 0)
        verdict = jnp.where(streak >= patience, 1, jnp.where(fails, -1, 0))
        # Checked here for every kind of condition, because trends do not read the error.
        distrusted = jnp.asarray(False)
        for signal in signals:
            _, error, fresh = observation.signals[signal]
            distrusted |= fresh & jnp.isinf(error)
        evaluated &= ~distrusted
        memory = optax.tree.cast_like(optax.tree.where(evaluated, memory, old.memory), old.memory)
        verdict, streak = (
            jnp.where(distrusted, 0, jnp.where(evaluated, new, before))
            for new, before in ((verdict, old.verdict), (streak, old.streak))
        )
        counts = jnp.stack([verdict, streak]).astype(jnp.int32)
        return verdict, {name: ConditionState(counts, shown(), memory)}

    return Trigger(init, update, frozenset(signals))


def if_given(trigger: Trigger, signal: str, otherwise: int) -> Trigger:
    """Replaces a trigger by a fixed verdict in a training loop that never passes ``signal``.

    The choice is made when the step is traced, because only then is it known whether
    ``value=`` or ``validation_value=`` is passed. A ``validation_value`` of NaN counts as passed
    but not measured.

    Args:
      trigger: used where the signal is passed.
      signal: "loss" or "validation".
      otherwise: the verdict without it: 1 holds, 0 unknown, -1 does not hold.

    Returns:
      A :class:`Trigger` that does not require ``signal``.

    Raises:
      ValueError: for another signal that the trigger does not read either, or an ``otherwise``
        that is none of these.

    Example:
      >>> import fgo_jax as fgo
      >>> rising = fgo.triggers.increasing("loss")
      >>> trigger = fgo.triggers.if_given(~rising, "loss", otherwise=1)
      >>> sorted(trigger.optional)
      ['loss']

    Source: the definition above.
    """
    _checks.choice("signal", signal, tuple(sorted({"loss", "validation", *trigger.signals})))
    if otherwise not in (-1, 0, 1):
        raise ValueError(
            f"otherwise is a verdict: pass 1 (holds), 0 (unknown) or -1, got {otherwise!r}."
        )

    def update(observation: Observation, state: State) -> tuple[jax.Array, State]:
        if signal in observation.signals:
            return trigger.update(observation, state)
        verdict = jnp.full([], otherwise, jnp.int32)
        counts = {name: jnp.stack([verdict, old.streak]) for name, old in state.items()}
        return verdict, {name: old._replace(counts=counts[name]) for name, old in state.items()}

    return dataclasses.replace(trigger, update=update, optional=trigger.optional | {signal})
