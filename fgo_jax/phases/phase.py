"""What a phase is: a gradient transformation, the law of its learning rate, and its decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.phases.rates import Adapt, Clock, Law
from fgo_jax.smoothing.energy_exponent import energy_exponent, energy_fall_init, energy_fall_update
from fgo_jax.smoothing.slow_momentum import momentum_init, momentum_update


class PhaseState(NamedTuple):
    """State of a phase used alone."""

    phase_step: jax.Array  # [], int32; updates made
    hyperparams: dict[str, jax.Array]  # {"fgo_learning_rate": [], float32}
    inner: Any  # the gradient transformation's own state
    slow: Any  # SlowMomentumState, or ()
    energy_fall: Any  # EnergyFallState, or ()
    decay_exponent: jax.Array  # [], float32; mean one of an adaptive decay so far


class Phase(optax.GradientTransformationExtraArgs):
    """A gradient transformation that :func:`fgo_jax.phased` can take apart.

    Attributes:
      name: shown by telemetry and errors.
      transform: gradients to a direction, before decay and rate.
      law: `Clock -> learning rate [], float32`.
      weight_decay: decoupled, scaled by the effective rate.
      mask: as in `optax.adamw`.
      inherits: whether the transform of the phase before is kept in its place.
      slow_share: of :func:`fgo_jax.slow_momentum` in the direction; None for none.
      adapt: an adaptive decay's exponent after a step; None where the law has none.
    """

    name: str
    transform: optax.GradientTransformation
    law: Law
    weight_decay: Any
    mask: Any
    inherits: bool
    slow_share: Any
    adapt: Adapt | None

    def __new__(
        cls,
        name: str,
        transform: optax.GradientTransformation,
        law: Law,
        weight_decay: Any = 0.0,
        mask: Any = None,
        inherits: bool = False,
        slow_share: Any = None,
        adapt: Adapt | None = None,
    ):
        _checks.non_negative("weight_decay", weight_decay)
        if slow_share is not None:
            _checks.fraction("slow_share", slow_share)
        if adapt is not None and (slow_share is None or _checks.is_zero(slow_share)):
            raise ValueError(
                f"phase {name!r}: an adaptive decay follows the slow momentum. Give a positive "
                'slow_share, or another decay such as "hyperbolic".'
            )
        if not isinstance(transform, optax.GradientTransformation):
            raise ValueError(
                f"the transform of phase {name!r} must be an optax.GradientTransformation "
                f"such as optax.scale_by_adam(), got {type(transform).__name__}."
            )
        with_extras = optax.with_extra_args_support(transform)

        def init(params: Any) -> PhaseState:
            zero = jnp.zeros([], jnp.float32)
            law(Clock(jnp.zeros([], jnp.int32), None, None, zero))  # raises where it needs company
            return PhaseState(
                jnp.zeros([], jnp.int32),
                {"fgo_learning_rate": jnp.zeros([], jnp.float32)},
                with_extras.init(params),
                () if slow_share is None else momentum_init(params),
                () if adapt is None else energy_fall_init(),
                zero,
            )

        def update(updates, state, params=None, **extra):
            clock = Clock(state.phase_step, None, None, state.decay_exponent)
            rate, slow = law(clock), state.slow
            energy_fall, exponent, measured = state.energy_fall, state.decay_exponent, True
            direction, inner = with_extras.update(updates, state.inner, params, **extra)
            # Before the momentum: at rest it is with the decay that directions cancel.
            direction = decayed([self], 0, direction, params)
            if adapt is not None:
                energy_fall = energy_fall_update(energy_fall, slow)
                exponent = adapt(clock, energy_exponent(energy_fall))
                # True, but XLA does not know: the mean waits until it has been measured.
                measured = energy_fall.measurements >= 0
            if slow_share is not None:
                share = jnp.asarray(slow_share, jnp.float32)
                direction, slow = momentum_update(slow, direction, share, taken=measured)
            scaled_updates = scaled(direction, updates, params, rate)
            return scaled_updates, PhaseState(
                jnp.asarray(optax.safe_increment(state.phase_step)),
                {"fgo_learning_rate": rate},
                inner,
                slow,
                energy_fall,
                exponent,
            )

        self = super().__new__(cls, init, update)
        self.name, self.transform, self.law = name, transform, law
        self.weight_decay, self.mask, self.inherits = weight_decay, mask, inherits
        self.slow_share, self.adapt = slow_share, adapt
        return self


def decayed(phases: Sequence[Phase], running: Any, direction: Any, params: Any) -> Any:
    """direction + weight_decay * params, with the running phase's decay and mask."""
    decays = [(phase.weight_decay, phase.mask) for phase in phases]
    same = all(w is decays[0][0] and m is decays[0][1] for w, m in decays)
    if all(_checks.is_zero(weight) for weight, _ in decays):
        return direction
    if params is None:
        raise ValueError("weight_decay needs the parameters: call update(grads, state, params).")
    if same:
        decay = optax.add_decayed_weights(*decays[0])
        return decay.update(direction, decay.init(params), params)[0]

    def strengths(weight: Any, mask: Any) -> Any:
        chosen = mask(params) if callable(mask) else mask
        if chosen is None:
            return jax.tree.map(lambda p: jnp.asarray(weight, jnp.float32), params)
        return jax.tree.map(lambda on: jnp.where(on, weight, 0.0), chosen)

    def add(leaf: jax.Array, param: jax.Array, *weights: jax.Array) -> jax.Array:
        return leaf + jnp.stack(weights)[running].astype(param.dtype) * param

    return jax.tree.map(add, direction, params, *(strengths(*decay) for decay in decays))


def scaled(direction: Any, grads: Any, params: Any, rate: jax.Array) -> Any:
    """-rate * direction in f32 (or wider), cast to the parameters' dtype."""

    def scale(leaf: Any, like: Any) -> Any:
        if leaf is None:
            return None
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return (-rate * wide).astype(like.dtype)

    likes = grads if params is None else params
    return jax.tree.map(scale, direction, likes, is_leaf=lambda x: x is None)
