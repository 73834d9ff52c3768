"""The direction of a step: the driving transform's, then the running phase's weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.controller.descent import descent_update
from fgo_jax.controller.design import Design
from fgo_jax.controller.select import select
from fgo_jax.controller.state import FgoState
from fgo_jax.phases.phase import Phase


def direction(
    design: Design,
    state: FgoState,
    grads: Any,
    params: Any,
    extras: dict[str, Any],
    ready: jax.Array,
) -> tuple[Any, tuple[Any, ...], Any, Any]:
    """The direction before smoothing, the transforms' states, the grafts and the descent.

    Args:
      extras: extra arguments of `update`, for the transforms.
      ready: [], bool; whether the step is taken. A skipped step has the direction zero.
    """
    clock = state.clock
    since = (clock.total_step - clock.driver_since).astype(jnp.float32)
    # A run may be resumed with a shorter hand-over than the one that it is in.
    filled = jnp.maximum(design.handover_steps - clock.handover_left, 0).astype(jnp.float32)
    driving, coming = design.plan.cast(clock.driver, clock.phase)
    towards, transforms, grafts = design.plan.direction(
        grads,
        params,
        state.transforms,
        state.grafts,
        driving=jnp.where(ready, driving, -1),
        coming=jnp.where(ready, coming, -1),
        graft_weight=jnp.where(
            clock.grafted, jnp.maximum(1.0 - since / design.handover_steps, 0.0), 0.0
        ),
        # Later steps count more: the new statistics are still filling.
        fill_share=2.0 / (filled + 2.0),
        clip_norm=design.clip_norm,
        extras=extras,
    )
    descent = descent_update(
        state.descent,
        grads,
        towards,
        step=clock.total_step,
        driver_since=clock.driver_since,
        taken=ready,
    )
    # Outside the transforms' conditionals, where it fuses with what follows.
    return decayed(design.phases, clock.phase, towards, params), transforms, grafts, descent


def decayed(phases: Sequence[Phase], running: Any, direction: Any, params: Any) -> Any:
    """direction + weight_decay * params, with the running phase's decay and mask.

    Args:
      running: [], int32; index of the running phase.

    Raises:
      ValueError: where a phase decays and there are no parameters.
    """
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
        strength = jnp.asarray(weight, jnp.float32)
        if chosen is None:
            return jax.tree.map(lambda p: strength, params)
        # A mask may be a prefix of the parameters, as in optax: one answer for a whole branch.
        return jax.tree.map(
            lambda on, branch: jax.tree.map(lambda p: jnp.where(on, strength, 0.0), branch),
            chosen,
            params,
        )

    def add(leaf: jax.Array, param: jax.Array, *weights: jax.Array) -> jax.Array:
        return leaf + select(running, weights).astype(param.dtype) * param

    return jax.tree.map(add, direction, params, *(strengths(*decay) for decay in decays))
