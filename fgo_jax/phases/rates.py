"""Laws of the learning rate: functions of a phase's progress, in float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.linalg.counters import later


class Progress(NamedTuple):
    """Where training stands, as a law of the learning rate sees it.

    All counts are of updates made before the present one.

    Attributes:
      phase_step: [], int32; updates since the phase began.
      phase_start: [], int32; updates before the phase began.
      total_steps: int or [] int32: the horizon; None where it is unknown.
      decay_exponent: [], float32; mean exponent of an adaptive decay so far.
      averaged: bool or [] bool: whether the weights are averaged.
      earliest: [], float32; the fewest updates before the phase that a relative decay counts. A
        phase forced by hand can begin sooner.

    Example:
      >>> import fgo_jax as fgo
      >>> start = fgo.decays.Progress(jnp.int32(50), jnp.int32(100), None, jnp.float32(0), False)
      >>> round(float(fgo.decays.hyperbolic().factor(start)), 3)
      0.667

    Source: section 4 of the FGO paper, whose phases have no fixed length.
    """

    phase_step: jax.Array
    phase_start: jax.Array
    total_steps: Any
    decay_exponent: jax.Array
    averaged: Any
    earliest: Any = 1.0


Law = Callable[[Progress], jax.Array]


def peak(learning_rate: Any, cut: Any = 0.0) -> Law:
    """(1 - cut) times a number, or times an optax schedule at the training step."""

    def law(progress: Progress) -> jax.Array:
        rate = learning_rate
        if callable(rate):
            rate = rate(later(progress.phase_step, progress.phase_start))
        return jnp.asarray(rate, jnp.float32) * jnp.asarray(1.0 - cut, jnp.float32)

    return law


@dataclasses.dataclass(frozen=True, eq=False)
class Warmup:
    """Linear from 1/W to 1 of the peak over W updates: no update is wasted at a rate of zero."""

    learning_rate: Any
    warmup_steps: Any

    def __call__(self, progress: Progress) -> jax.Array:
        """The rate, [], float32."""
        ramp = (progress.phase_step.astype(jnp.float32) + 1.0) / jnp.maximum(
            jnp.asarray(self.warmup_steps, jnp.float32), 1.0
        )
        return peak(self.learning_rate)(progress) * jnp.minimum(ramp, 1.0)


def glide(entry: jax.Array, target: jax.Array, share: jax.Array) -> jax.Array:
    """From one rate to another, evenly on a log scale; from zero linearly, to zero at once.

    If the target falls to zero on the way, as a decay can, the rate is zero at once. It follows
    at once if the target rises again.

    Args:
      entry: [], float32; the rate at the start.
      target: [], float32; the rate at the end.
      share: [], float32; how much of the way is done; 1 and more give `target` exactly.
    """
    ratio = jnp.maximum(target, 0.0) / jnp.where(entry > 0, entry, 1.0)
    moving = jnp.where(entry > 0, entry * ratio**share, target * share)
    return jnp.where(share >= 1.0, target, moving)
