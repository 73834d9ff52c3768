"""A decay: a factor on the learning rate, and its length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.phases.rates import Law, Progress


@dataclasses.dataclass(frozen=True, eq=False)
class Decay:
    """A factor on the learning rate that falls from one over a phase.

    Attributes:
      factor: `Progress -> [], float32`.
      exponent: for a decay that follows the slow momentum. `(Progress, q) -> [], float32`
        gives ``Progress.decay_exponent`` after this step, where q is the measured exponent
        of :func:`fgo_jax.smoothing.energy_exponent.energy_exponent`, NaN while unknown. None
        for a decay that needs no measurement.
      relative: whether its length is a ratio of the updates before the phase, so that it
        cannot be the first phase's.
      to_the_end: whether a known horizon gives it its length instead: the steps that are left.

    Example:
      >>> import fgo_jax as fgo
      >>> halves = fgo.decays.Decay(lambda progress: 0.5 ** (progress.phase_step / 1000.0))
      >>> phase = fgo.execution(1e-3, decay=halves)

    Source: section 4 of the FGO paper, phase 3.
    """

    factor: Law
    exponent: Callable[[Progress, jax.Array], jax.Array] | None = None
    relative: bool = False
    to_the_end: bool = False


def make_decay(
    factor: Callable[[Progress, jax.Array], jax.Array],
    steps: Any,
    ratio: Any,
    floor: Any,
    *,
    ends: bool = True,
    exponent: Callable[[Progress, jax.Array], jax.Array] | None = None,
) -> Decay:
    """A decay from its factor, a function of the progress and of s/L."""
    if steps is not None:
        _checks.integer("steps", steps)
    _checks.positive("ratio", ratio)
    _checks.fraction("floor", floor)

    to_the_end = ends and steps is None

    def law(progress: Progress) -> jax.Array:
        elapsed = progress.phase_step.astype(jnp.float32)
        if progress.total_steps is None:
            value = factor(progress, elapsed / length_of(progress, steps, ratio))
        else:
            horizon = jnp.asarray(progress.total_steps, jnp.float32)
            left = jnp.maximum(horizon - progress.phase_start.astype(jnp.float32), 1.0)
            if to_the_end:
                value = factor(progress, elapsed / left)
            else:
                share = elapsed / length_of(progress, steps, ratio)
                line = jnp.maximum(1.0 - elapsed / left, 0.0)
                value = jnp.minimum(factor(progress, share), line)
        return jnp.maximum(value, jnp.asarray(floor, jnp.float32))

    return Decay(law, exponent, relative=steps is None, to_the_end=to_the_end)


def length_of(progress: Progress, steps: Any, ratio: Any) -> jax.Array:
    """L, the decay's length in updates."""
    # Without `earliest`, a relative decay begun by hand soon after the start would end at once.
    start = jnp.maximum(progress.phase_start.astype(jnp.float32), progress.earliest)
    length = ratio * start if steps is None else steps
    return jnp.maximum(jnp.asarray(length, jnp.float32), 1.0)
