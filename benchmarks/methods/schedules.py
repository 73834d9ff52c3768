"""Learning rates as functions of the step, all behind the same linear warm-up.

Rates, cuts and lengths may be traced arrays, so that the trials of a grid share one
compiled program.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import optax

DECAY = 0.2  # of the horizon: the decay of warm-up, stable, decay


def _warm(rate, warmup_steps: int, shape) -> optax.Schedule:
    def schedule(count):
        rise = jnp.minimum(1.0, (count + 1) / max(warmup_steps, 1))
        return rate * rise * shape(count)

    return schedule


def constant(rate, warmup_steps: int) -> optax.Schedule:
    return _warm(rate, warmup_steps, lambda count: 1.0)


def two_step(rate, warmup_steps: int, switch, cut) -> optax.Schedule:
    """The rate is multiplied by `cut` from step `switch` on."""
    return _warm(rate, warmup_steps, lambda count: jnp.where(count < switch, 1.0, cut))


def cosine(rate, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Half a cosine from the end of the warm-up to zero at `total_steps`."""

    def shape(count):
        progress = (count - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return _warm(rate, warmup_steps, shape)


def power(rate, warmup_steps: int, scale, exponent: float) -> optax.Schedule:
    """(1 + (t - W) / scale) ** -exponent after a warm-up of W steps."""

    def shape(count):
        return (1 + jnp.maximum(count - warmup_steps, 0) / scale) ** -exponent

    return _warm(rate, warmup_steps, shape)


def warmup_stable_decay(
    rate, warmup_steps: int, total_steps: int, law: Literal["linear", "1-sqrt"]
) -> optax.Schedule:
    """Constant until the last fifth of `total_steps`, then down to zero at its end.

    With s from 0 to 1 over that fifth the factor is 1 - s, or 1 - sqrt(s) (Hägele et al.,
    2024).
    """
    length = DECAY * total_steps

    def shape(count):
        progress = jnp.clip((count - total_steps + length) / length, 0.0, 1.0)
        return 1 - (progress if law == "linear" else jnp.sqrt(progress))

    return _warm(rate, warmup_steps, shape)
