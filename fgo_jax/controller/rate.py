"""The learning rate of a step, the exponent of an adaptive decay, and the scaled update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.controller.design import Design
from fgo_jax.controller.select import select
from fgo_jax.controller.state import Clock
from fgo_jax.linalg.trees import wide
from fgo_jax.phases import rates
from fgo_jax.smoothing.energy_exponent import energy_exponent


def effective_rate(design: Design, clock: Clock) -> jax.Array:
    """[], float32: the running phase's learning rate, or the glide towards it."""

    def of_phase(index: int) -> jax.Array:
        phase, progress = design.phases[index], progress_of(design, clock, index)
        rate = phase.rate(progress)
        rate = rate if phase.decay is None else rate * phase.decay.factor(progress)
        _checks.scheduled(f"the learning rate of phase {phase.name!r}", rate)
        return jnp.asarray(rate, jnp.float32)

    wanted = select(clock.phase, [of_phase(index) for index in range(len(design.phases))])
    share = (clock.phase_step.astype(jnp.float32) + 1.0) / design.handover_steps
    glide = rates.glide(clock.entry_rate, wanted, share)
    return jnp.where(clock.entry_rate < 0, wanted, glide)


def decay_exponent(design: Design, clock: Clock, energy: Any) -> jax.Array:
    """[], float32: mean exponent of the running phase's adaptive decay after this step.

    Zero in a phase without one.

    Args:
      energy: the measured energy of the slow momentum; read where a decay is adaptive.
    """
    if not design.has_adaptive_decay:
        return clock.decay_exponent
    measured = energy_exponent(energy)
    exponents = [
        jnp.zeros([], jnp.float32)
        if phase.decay is None or phase.decay.exponent is None
        else phase.decay.exponent(progress_of(design, clock, index), measured)
        for index, phase in enumerate(design.phases)
    ]
    return select(clock.phase, exponents)


def progress_of(design: Design, clock: Clock, index: int) -> rates.Progress:
    """The progress of a phase, if it is the running one."""
    return rates.Progress(
        clock.phase_step,
        clock.started[index],
        design.total_steps,
        clock.decay_exponent,
        # A window of zero is a copy of the last parameters, with all of their noise.
        design.average_weights is not None and jnp.asarray(design.average_weights) > 0,
        _earliest(design, index),
    )


def _earliest(design: Design, index: int) -> jax.Array:
    """[], float32: the fewest updates before a phase that the length of its decay may count.

    That is the phase's earliest start by triggers or a deadline, so only a phase forced by hand
    comes sooner; and never less than a hand-over.
    """
    before = design.min_steps[:index]
    earliest = sum((jnp.asarray(steps, jnp.float32) for steps in before), jnp.float32(0.0))
    if design.deadlines is not None and index > 0:
        deadline = design.deadlines[index - 1] * jnp.asarray(design.total_steps, jnp.float32)
        earliest = jnp.minimum(earliest, deadline)
    return jnp.maximum(earliest, jnp.asarray(design.handover_steps, jnp.float32))


def scaled(direction: Any, grads: Any, params: Any, rate: jax.Array, finite: jax.Array) -> Any:
    """-rate * direction in f32 (or wider), cast to the parameters' dtype; zero where not finite.

    Args:
      finite: [], bool; whether the step is taken.
    """

    def scale(leaf: Any, like: Any) -> Any:
        if leaf is None:
            return None
        # A choice, not a rate of zero: weight decay of an infinite parameter is infinite.
        return jnp.where(finite, -rate * wide(leaf), 0.0).astype(like.dtype)

    likes = grads if params is None else params
    return jax.tree.map(scale, direction, likes, is_leaf=lambda x: x is None)
