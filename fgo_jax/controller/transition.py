"""When a phase ends, and what the next one begins with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax.controller.design import Design
from fgo_jax.controller.select import select
from fgo_jax.controller.state import BY_DEADLINE, BY_HAND, BY_TRIGGER, Clock, FgoState
from fgo_jax.linalg.devices import again
from fgo_jax.triggers import Observation, Signal, Trigger


def judge(
    design: Design,
    state: FgoState,
    observe: Callable[[Iterable[str]], dict[str, Signal]],
    finite: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
    """Whether the running phase's trigger ends it, and all triggers' states.

    Only the running phase's trigger is evaluated, and not during a hand-over. Its state is reset
    at the phase's first step, even in a hand-over: otherwise a verdict from before a restart
    could end the phase. A step that is not finite changes no state.
    """
    clock, states = state.clock, dict(state.trigger_states)
    holds = jnp.asarray(False)
    for index, (trigger, key) in enumerate(zip(design.triggers, design.keys, strict=False)):
        running = finite & (clock.phase == index)
        begins = running & (clock.phase_step == 0)
        active = running & (clock.handover_left == 0)
        long_enough = clock.phase_step >= design.min_steps[index] - 1
        look = functools.partial(_look, trigger, observe, clock)
        # Skips the other phases' triggers; XLA then repeats none of them where `holds` is read.
        ends, states[key] = jax.lax.cond(begins | active, look, _wait, states[key], begins, active)
        holds |= ends & long_enough
    return holds, states


def _look(
    trigger: Trigger,
    observe: Callable[[Iterable[str]], dict[str, Signal]],
    clock: Clock,
    state: Any,
    begins: jax.Array,
    active: jax.Array,
) -> tuple[jax.Array, Any]:
    # Outside the branch, each part of a signal would be a separate kernel.
    observation = Observation(observe(trigger.signals), clock.phase_step, clock.total_step)
    old = optax.tree.where(begins, trigger.init(), state)
    verdict, new = trigger.update(observation, old)
    # Bounds do not depend on `active`; choosing them would add a kernel per condition.
    bounds = {name: again(condition.bound, state[name].bound) for name, condition in new.items()}
    new = optax.tree.where(active, new, old)
    new = {name: condition._replace(bound=bounds[name]) for name, condition in new.items()}
    return active & (verdict == 1), optax.tree.cast_like(new, state)


def _wait(state: Any, begins: jax.Array, active: jax.Array) -> tuple[jax.Array, Any]:
    # Not a constant: inside `shard_map` it varies over the devices like what `_look` returns.
    return begins & active & False, state


def advance(
    design: Design,
    clock: Clock,
    holds: jax.Array,
    rate: jax.Array,
    decay_exponent: jax.Array,
    signals: dict[str, Signal],
) -> Clock:
    """The clock after an update.

    Args:
      holds: [], bool; a trigger ends the running phase.
      rate: [], float32; of the update; a new phase's rate glides from it.
      decay_exponent: [], float32; of the running phase, after the update.
      signals: those of the update.
    """
    count = len(design.phases)
    total = jnp.asarray(optax.safe_increment(clock.total_step))
    late = jnp.asarray(False)
    if design.deadlines is not None:
        ends = [jnp.asarray(design.total_steps, jnp.float32) * d for d in design.deadlines]
        limit = select(clock.phase, [*ends, jnp.asarray(jnp.inf, jnp.float32)])
        late = (clock.handover_left == 0) & (total.astype(jnp.float32) >= limit)
        # A deadline does not end a phase that was entered by hand after that deadline.
        entered = clock.started[clock.phase].astype(jnp.float32)
        late &= (clock.causes[clock.phase] != BY_HAND) | (entered < limit)
    last = clock.phase == count - 1
    forced = clock.requested_phase >= 0
    leaves = forced | ((holds | late) & ~last)
    target = jnp.where(forced, clock.requested_phase, clock.phase + 1)
    target = jnp.clip(target, 0, count - 1)
    fills = design.plan.must_fill(clock.driver, target)

    left = jnp.clip(clock.handover_left - 1, 0, design.handover_steps)
    left = jnp.where(leaves, jnp.where(fills, design.handover_steps, 0), left)
    phase = jnp.where(leaves, target, clock.phase)
    driver = jnp.where(left == 0, phase, clock.driver)
    taken_over = design.plan.transform_at(driver) != design.plan.transform_at(clock.driver)
    cause = jnp.where(forced, BY_HAND, jnp.where(holds, BY_TRIGGER, BY_DEADLINE))
    unknown = jnp.full([], jnp.nan, jnp.float32)
    begun = leaves & (jnp.arange(count) == target)
    return Clock(
        total_step=total,
        phase=phase,
        phase_step=jnp.where(leaves, 0, optax.safe_increment(clock.phase_step)),
        requested_phase=jnp.full([], -1, jnp.int32),
        driver=driver,
        driver_since=jnp.where(taken_over, total, clock.driver_since),
        handover_left=left,
        entry_rate=jnp.where(leaves, rate, clock.entry_rate),
        decay_exponent=jnp.where(leaves, 0.0, decay_exponent),
        started=jnp.where(begun, total, clock.started),
        causes=jnp.where(begun, cause, clock.causes),
        stop_flag=~leaves & (clock.stop_flag | (holds & last)),
        # A transform that a forced phase puts in charge at once has no graft of its own.
        grafted=jnp.where(taken_over, ~leaves, clock.grafted),
        reported=signals["validation"].value if "validation" in signals else unknown,
    )
