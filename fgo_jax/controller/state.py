"""All that an optimizer of phases remembers."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.controller.descent import descent_init
from fgo_jax.controller.design import Design
from fgo_jax.controller.handover import graft_init
from fgo_jax.smoothing import average_weights, energy_exponent, slow_momentum

# Why a phase began, in Clock.causes.
NOT_BEGUN, BY_TRIGGER, BY_DEADLINE, BY_HAND, AT_START = 0, 1, 2, 3, 4


class Clock(NamedTuple):
    """Where a run stands: the scalars that a taken step changes and a skipped step keeps."""

    total_step: jax.Array  # [], int32; updates made
    phase: jax.Array  # [], int32; index of the running phase
    phase_step: jax.Array  # [], int32; updates made in it
    requested_phase: jax.Array  # [], int32; by force_phase; -1: none
    driver: jax.Array  # [], int32; phase whose transform makes the updates
    driver_since: jax.Array  # [], int32; total_step at which it took over
    handover_left: jax.Array  # [], int32; steps until the running phase drives
    entry_rate: jax.Array  # [], float32; rate when the phase began; -1: nothing to glide from
    decay_exponent: jax.Array  # [], float32; mean exponent of an adaptive decay so far
    started: jax.Array  # [phases], int32; total_step at which each phase began, -1 before
    causes: jax.Array  # [phases], int32; one of the five above
    stop_flag: jax.Array  # [], bool; the last phase's trigger has fired
    grafted: jax.Array  # [], bool; the driver took over with norms measured in a hand-over
    reported: jax.Array  # [], float32; the last step's validation_value; NaN where not measured


class FgoState(NamedTuple):
    """Everything that :func:`fgo_jax.phased` remembers; a pytree of arrays.

    Attributes:
      clock: the scalars that a skipped step keeps: steps, phase, hand-over, causes.
      skipped_steps: [], int32; steps whose gradients or loss are not finite, or so large that
        their squares overflow float32.
      fgo_learning_rate: [], float32; the effective rate of the last step.
      signals: of each signal its newest value and standard error, [2], float32; NaN until
        measured.
      probe_key: [2], uint32.
      probe_state: the probe's own, or ().
      trigger_states: for each phase its trigger's conditions, by the phase's index and name:
        ``{"0_acquisition": {...}, ...}``; empty for a phase without a trigger.
      transforms: the states of the distinct gradient transformations.
      grafts: for each transform that takes over in a hand-over, [leaves + 1], float32: the logs
        of the factors on its updates, of each parameter and of all; NaN until measured.
      descent: `DescentState`, of the directions' cosines with the gradients.
      slow: `SlowMomentumState`, or ().
      energy_fall: `EnergyFallState`, or ().
      average: `AverageWeightsState`, or ().

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = optax.chain(fgo.target_acquisition(3e-3))
      >>> state = optax.tree.get(tx.init({"w": jnp.ones(2)}), "FgoState")
      >>> int(state.clock.phase)
      0

    Source: section 4 of the FGO paper, for what a run has to remember.
    """

    clock: Clock
    skipped_steps: jax.Array
    fgo_learning_rate: jax.Array
    signals: dict[str, jax.Array]
    probe_key: jax.Array
    probe_state: Any
    trigger_states: dict[str, Any]
    transforms: tuple[Any, ...]
    grafts: Any
    descent: Any
    slow: Any
    energy_fall: Any
    average: Any


def clock_init(phases: int) -> Clock:
    """The clock before the first update."""
    # An array each: one buffer in two places could not be donated to a jitted step.
    scalars = (
        "total_step", "phase", "phase_step", "driver", "driver_since", "handover_left",
    )  # fmt: skip
    first = jnp.arange(phases) == 0
    return Clock(
        requested_phase=jnp.full([], -1, jnp.int32),
        entry_rate=jnp.full([], -1.0, jnp.float32),
        decay_exponent=jnp.zeros([], jnp.float32),
        started=jnp.where(first, 0, -1).astype(jnp.int32),
        causes=jnp.where(first, AT_START, NOT_BEGUN).astype(jnp.int32),
        stop_flag=jnp.zeros([], jnp.bool_),
        grafted=jnp.zeros([], jnp.bool_),
        reported=jnp.full([], jnp.nan, jnp.float32),
        **{name: jnp.zeros([], jnp.int32) for name in scalars},
    )


def phase_names(state: FgoState) -> list[str]:
    """The phases' names in their order."""
    return [key.partition("_")[2] for key in sorted(state.trigger_states)]


def state_init(design: Design, params: Any) -> FgoState:
    """The state before the first update; `params` may be `jax.ShapeDtypeStruct`s."""
    probe, window, dtype = design.probe, design.average_weights, design.smoothing_dtype
    return FgoState(
        clock=clock_init(len(design.phases)),
        skipped_steps=jnp.zeros([], jnp.int32),
        fgo_learning_rate=jnp.zeros([], jnp.float32),
        signals={name: jnp.full(2, jnp.nan, jnp.float32) for name in design.signals},
        probe_key=jax.random.key_data(jax.random.key(design.seed, impl="threefry2x32")),
        probe_state=() if probe is None else probe.init(params),
        trigger_states={
            key: {} if trigger is None else trigger.init()
            for key, trigger in zip_longest(design.keys, design.triggers)
        },
        transforms=tuple(transform.init(params) for transform in design.plan.transforms),
        grafts=tuple(graft_init(params) for _ in design.plan.fills),
        descent=descent_init(),
        slow=slow_momentum.momentum_init(params, dtype) if design.has_slow_momentum else (),
        energy_fall=energy_exponent.energy_fall_init() if design.has_adaptive_decay else (),
        average=() if window is None else average_weights.average_init(params, window, dtype),
    )
