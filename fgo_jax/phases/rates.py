"""Learning-rate laws: functions of a phase's clock, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

DECAYS = (
    "adaptive",
    "hyperbolic",
    "inverse_sqrt",
    "linear",
    "one_minus_sqrt",
    "cosine",
    "exponential",
)
_ENDLESS = ("adaptive", "hyperbolic", "inverse_sqrt")


class Clock(NamedTuple):
    """Where training stands; counts updates made before this one."""

    phase_step: jax.Array  # [], int32; since the phase began
    started: jax.Array | None  # [], int32; steps before the phase; None: the phase is alone
    total_steps: Any  # int or [] int32; the horizon, or None
    exponent: jax.Array  # [], float32; mean one of an adaptive decay so far


Law = Callable[[Clock], jax.Array]
Adapt = Callable[[Clock, jax.Array], jax.Array]


def peak(learning_rate: Any, cut: Any = 0.0) -> Law:
    """(1 - cut) times a number, or a schedule at the training step."""

    def law(clock: Clock) -> jax.Array:
        rate = learning_rate
        if callable(rate):
            before = 0 if clock.started is None else clock.started
            rate = rate(clock.phase_step + before)
        return jnp.asarray(rate, jnp.float32) * jnp.asarray(1.0 - cut, jnp.float32)

    return law


def warmup(learning_rate: Any, warmup_steps: Any) -> Law:
    """Linear from 1/W to 1 of the peak over W updates: no update is wasted at zero."""
    full = peak(learning_rate)

    def law(clock: Clock) -> jax.Array:
        ramp = (clock.phase_step.astype(jnp.float32) + 1.0) / jnp.maximum(
            jnp.asarray(warmup_steps, jnp.float32), 1.0
        )
        return full(clock) * jnp.minimum(ramp, 1.0)

    return law


def times(start: Law, factor: Law) -> Law:
    return lambda clock: start(clock) * factor(clock)


def decay(name: str, decay_steps: Any, decay_ratio: Any, floor: Any) -> Law:
    """The factor that begins at one; see :func:`fgo_jax.execution` for the laws."""

    def law(clock: Clock) -> jax.Array:
        elapsed = clock.phase_step.astype(jnp.float32)
        remaining = None
        if clock.total_steps is not None and clock.started is not None:
            remaining = jnp.maximum(
                jnp.asarray(clock.total_steps, jnp.float32) - clock.started.astype(jnp.float32), 1.0
            )
        if remaining is not None and decay_steps is None and name not in _ENDLESS:
            length = remaining
        else:
            length = _length(clock, decay_steps, decay_ratio)
        if name == "adaptive":
            factor = jnp.exp(-clock.exponent * jnp.log1p(elapsed / length))
        else:
            factor = _factor(name, elapsed / length)
        if remaining is not None:
            factor = jnp.minimum(factor, jnp.maximum(1.0 - elapsed / remaining, 0.0))
        return jnp.maximum(factor, jnp.asarray(floor, jnp.float32))

    return law


def adapt(decay_steps: Any, decay_ratio: Any, onset: Any) -> Adapt:
    """An adaptive decay's mean exponent after one more step, from the energy's exponent q.

    The step's own is min(1, max(0, q - onset)); the mean is over log(L + s), so that all
    of them together are one power of 1 + s/L. In float32 a sum of ever smaller logarithms
    would come to a halt; this mean keeps what it has.
    """

    def law(clock: Clock, energy_exponent: jax.Array) -> jax.Array:
        length = _length(clock, decay_steps, decay_ratio)
        elapsed = clock.phase_step.astype(jnp.float32)
        own = jnp.clip(energy_exponent - jnp.asarray(onset, jnp.float32), 0.0, 1.0)
        own = jnp.where(jnp.isnan(own), 0.0, own)
        weight = jnp.log1p(1.0 / (length + elapsed)) / jnp.log1p((elapsed + 1.0) / length)
        return clock.exponent + weight * (own - clock.exponent)

    return law


def _length(clock: Clock, decay_steps: Any, decay_ratio: Any) -> jax.Array:
    """L, the decay's length in steps."""
    if decay_steps is not None:
        return jnp.maximum(jnp.asarray(decay_steps, jnp.float32), 1.0)
    if clock.started is None:
        raise ValueError(
            "execution alone follows no steps to take its length from: pass decay_steps=."
        )
    return jnp.maximum(decay_ratio * clock.started.astype(jnp.float32), 1.0)


def _factor(name: str, progress: jax.Array) -> jax.Array:
    if name == "hyperbolic":
        return 1.0 / (1.0 + progress)
    if name == "inverse_sqrt":
        return jax.lax.rsqrt(1.0 + progress)
    x = jnp.minimum(progress, 1.0)
    if name == "linear":
        return 1.0 - x
    if name == "one_minus_sqrt":
        return 1.0 - jnp.sqrt(x)
    if name == "cosine":
        return 0.5 * (1.0 + jnp.cos(jnp.pi * x))
    return jnp.exp(-x * jnp.log(jnp.float32(100.0)))


def glide(entry: jax.Array, target: jax.Array, progress: jax.Array) -> jax.Array:
    """From one rate to another, evenly on a log scale; linearly where one is zero."""
    positive = (entry > 0) & (target > 0)
    ratio = jnp.where(positive, target, 1.0) / jnp.where(positive, entry, 1.0)
    smooth = entry * ratio**progress
    moving = jnp.where(positive, smooth, entry + (target - entry) * progress)
    # Exactly the law's own rate once the glide is over.
    return jnp.where(progress >= 1.0, target, moving)
