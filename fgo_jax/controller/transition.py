"""When a phase ends and what its successor begins with."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax.controller.handover import Plan
from fgo_jax.controller.state import BY_DEADLINE, BY_HAND, BY_TRIGGER, FgoState
from fgo_jax.phases import rates as laws
from fgo_jax.phases.phase import Phase
from fgo_jax.triggers import Observation, Trigger


@dataclasses.dataclass(frozen=True)
class Course:
    """The phases, what ends them, and the limits on when."""

    phases: tuple[Phase, ...]
    triggers: tuple[Trigger, ...]
    plan: Plan
    handover_steps: Any
    min_steps: tuple[Any, ...]  # one for each phase
    total_steps: Any
    deadlines: tuple[float, ...] | None  # shares of total_steps, one for each phase but the last

    def rate(self, state: FgoState) -> jax.Array:
        """The effective learning rate: the running phase's law, or the glide towards it."""
        rates = [phase.law(self._clock(state, index)) for index, phase in enumerate(self.phases)]
        wanted = jnp.stack(rates)[state.phase]
        progress = (state.phase_step.astype(jnp.float32) + 1.0) / self.handover_steps
        glide = laws.glide(state.entry_rate, wanted, progress)
        return jnp.where(state.entry_rate < 0, wanted, glide)

    @property
    def has_slow_momentum(self) -> bool:
        return any(phase.slow_share is not None for phase in self.phases)

    def slow_share(self, state: FgoState) -> jax.Array:
        """The running phase's share of slow momentum, 0 where it has none."""
        shares = [0.0 if phase.slow_share is None else phase.slow_share for phase in self.phases]
        return jnp.stack([jnp.asarray(share, jnp.float32) for share in shares])[state.phase]

    @property
    def has_adaptive_decay(self) -> bool:
        return any(phase.adapt is not None for phase in self.phases)

    def adapted(self, state: FgoState, energy_exponent: jax.Array) -> jax.Array:
        """The exponent of the running phase's adaptive decay after this step; 0 for none."""
        exponents = [
            jnp.zeros([], jnp.float32)
            if phase.adapt is None
            else phase.adapt(self._clock(state, index), energy_exponent)
            for index, phase in enumerate(self.phases)
        ]
        return jnp.stack(exponents)[state.phase]

    def _clock(self, state: FgoState, index: int) -> laws.Clock:
        return laws.Clock(
            state.phase_step, state.started[index], self.total_steps, state.decay_exponent
        )

    def judge(
        self, state: FgoState, observation: Observation, running: jax.Array
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """Whether the running phase's trigger ends it, and all triggers' states."""
        holds, states = jnp.asarray(False), []
        for index, (trigger, old) in enumerate(
            zip(self.triggers, state.trigger_states, strict=True)
        ):
            active = running & (state.phase == index)
            begins = state.phase_step == 0
            fresh = jax.tree.map(lambda a, b: jnp.where(begins, a, b), trigger.init(), old)  # noqa: B023
            verdict, new = trigger.update(observation, fresh)
            holds |= active & (verdict == 1) & (state.phase_step + 1 >= self.min_steps[index])
            states.append(
                jax.tree.map(lambda a, b: jnp.where(active, a, b).astype(b.dtype), new, old)  # noqa: B023
            )
        return holds, tuple(states)

    def advance(
        self, state: FgoState, holds: jax.Array, rate: jax.Array, decay_exponent: jax.Array
    ) -> FgoState:
        """The state after an update made at `rate`; `holds` says that a trigger ends the phase."""
        count = len(self.phases)
        total = jnp.asarray(optax.safe_increment(state.total_step))
        late = jnp.asarray(False)
        if self.deadlines is not None:
            ends = [jnp.asarray(self.total_steps, jnp.float32) * d for d in self.deadlines]
            limit = jnp.stack([*ends, jnp.asarray(jnp.inf, jnp.float32)])[state.phase]
            late = (state.handover_left == 0) & (total.astype(jnp.float32) >= limit)
        last = state.phase == count - 1
        forced = state.requested_phase >= 0
        leaves = forced | ((holds | late) & ~last)
        target = jnp.where(forced, state.requested_phase, state.phase + 1)
        target = jnp.clip(target, 0, count - 1)
        fills = jnp.asarray(self.plan.needs_fill)[state.driver, target]

        left = jnp.maximum(state.handover_left - 1, 0)
        left = jnp.where(leaves, jnp.where(fills, self.handover_steps, 0), left)
        phase = jnp.where(leaves, target, state.phase)
        driver = jnp.where(left == 0, phase, state.driver)
        transform_of = jnp.asarray(self.plan.transform_of)
        taken_over = transform_of[driver] != transform_of[state.driver]
        cause = jnp.where(forced, BY_HAND, jnp.where(holds, BY_TRIGGER, BY_DEADLINE))
        begun = leaves & (jnp.arange(count) == target)
        return state._replace(
            total_step=total,
            phase=phase,
            phase_step=jnp.where(leaves, 0, optax.safe_increment(state.phase_step)),
            requested_phase=jnp.full([], -1, jnp.int32),
            driver=driver,
            driver_since=jnp.where(taken_over, total, state.driver_since),
            handover_left=left,
            entry_rate=jnp.where(leaves, rate, state.entry_rate),
            decay_exponent=jnp.where(leaves, 0.0, decay_exponent),
            started=jnp.where(begun, total, state.started),
            causes=jnp.where(begun, cause, state.causes),
            stop_flag=state.stop_flag | (holds & last),
        )
