"""All that an optimizer of phases remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

# Why a phase began, in FgoState.causes.
NOT_BEGUN, BY_TRIGGER, BY_DEADLINE, BY_HAND = 0, 1, 2, 3


class FgoState(NamedTuple):
    """Everything that :func:`phased` remembers; a pytree of arrays."""

    total_step: jax.Array  # [], int32; updates made
    phase: jax.Array  # [], int32; index of the running phase
    phase_step: jax.Array  # [], int32; updates made in it
    requested_phase: jax.Array  # [], int32; by force_phase; -1: none
    driver: jax.Array  # [], int32; phase whose transform makes the updates
    driver_since: jax.Array  # [], int32; total_step at which it took over
    handover_left: jax.Array  # [], int32; steps until the running phase drives
    entry_rate: jax.Array  # [], float32; rate when the phase began; -1: nothing to glide from
    decay_exponent: jax.Array  # [], float32; mean one of an adaptive decay so far
    started: jax.Array  # [phases], int32; total_step at which each phase began, -1 before
    causes: jax.Array  # [phases], int32; NOT_BEGUN, BY_TRIGGER, BY_DEADLINE or BY_HAND
    stop_flag: jax.Array  # [], bool; the last phase's trigger has fired
    skipped_steps: jax.Array  # [], int32; steps with non-finite gradients or loss
    hyperparams: dict[str, jax.Array]  # {"fgo_learning_rate": [], float32}
    signals: dict[str, jax.Array]  # latest value of each signal, [], float32
    probe_key: jax.Array  # [2], uint32
    probe_state: Any
    trigger_states: tuple[Any, ...]  # one for each trigger
    transforms: tuple[Any, ...]  # one for each distinct gradient transformation
    grafts: Any  # float32 scalar for each leaf of the parameters, or ()
    slow: Any  # SlowMomentumState, or ()
    energy_fall: Any  # EnergyFallState, or ()
    average: Any  # AverageWeightsState, or ()
