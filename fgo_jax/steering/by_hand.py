"""Steering a run by hand: when to stop, which phase comes next, beginning again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.controller.accumulate import AccumulateState, emptied
from fgo_jax.controller.state import FgoState, clock_init, phase_names
from fgo_jax.linalg.mesh import filled_like
from fgo_jax.smoothing.slow_momentum import SlowMomentumState
from fgo_jax.steering.best import KeepBestState, searched_anew
from fgo_jax.steering.find import mapped, mapped_nodes, states_in
from fgo_jax.triggers import ConditionState


def should_stop(opt_state: Any) -> jax.Array:
    """Whether the last phase's trigger has fired: validation stopped improving.

    By default it says so in execution, after ten reports of ``validation_value`` without an
    improvement; ``triggers=fgo.triggers.defaults(patience=5)`` of
    :func:`fgo_jax.target_acquisition` makes that five. It stays True until another phase begins or
    :func:`restart`. :func:`fgo_jax.phased` says what a report is, and :func:`fgo_jax.keep_best`
    keeps the best weights.

    With several states in the tree: whether all of them say so.

    Args:
      opt_state: as in :func:`telemetry`.

    Returns:
      [], bool.

    Raises:
      ValueError: where there is no :class:`FgoState`.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> bool(fgo.should_stop(fgo.target_acquisition(3e-3).init({"w": jnp.ones(2)})))
      False

    Source: Prechelt (1998), "Early stopping, but when?".
    """
    return jnp.all(jnp.stack([state.clock.stop_flag for state in states_in(opt_state).values()]))


def force_phase(opt_state: Any, phase: str | int) -> Any:
    """Enters a phase by hand, as if its predecessor's trigger had fired.

    The next update still belongs to the running phase. A later phase with a transform of its own
    begins with a hand-over. Its trigger starts anew, and so does the flag of
    :func:`should_stop`.

    Args:
      opt_state: as in :func:`telemetry`; all states in it enter the phase.
      phase: the phase's name, such as "execution", or its index.

    Returns:
      The new state.

    Raises:
      ValueError: for a phase that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> state = fgo.target_acquisition(3e-3).init({"w": jnp.ones(2)})
      >>> int(fgo.force_phase(state, "execution").clock.requested_phase)
      2

    Source: section 4 of the FGO paper.
    """

    def force(state: FgoState) -> FgoState:
        names, clock, index = phase_names(state), state.clock, phase
        if isinstance(index, str):
            _checks.choice("phase", index, tuple(names))
            index = names.index(index)
        _checks.static("phase", index)
        _checks.integer("the index of a phase", index, 0)
        if not 0 <= index < len(names):
            raise ValueError(
                f"phase {index} is not among the {len(names)} phases 0 to {len(names) - 1}: "
                f"{', '.join(names)}."
            )
        clock = clock._replace(
            requested_phase=jnp.full_like(clock.requested_phase, index),
            stop_flag=jnp.zeros_like(clock.stop_flag),
        )
        return state._replace(clock=clock)

    return mapped(force, opt_state)


def restart(opt_state: Any) -> Any:
    """Begins again with the first phase and its warm-up, and keeps the transforms' moments.

    For fine-tuning or a changed data set. Steps, triggers and slow momentum start over, and so
    does the search of :func:`fgo_jax.keep_best`: values on other data do not compare. Gradients
    that :func:`fgo_jax.accumulate` has gathered for a step are dropped. The probe's last numbers
    and the average of the weights, old steps included, stay.

    Args:
      opt_state: as in :func:`telemetry`.

    Returns:
      The new state.

    Raises:
      ValueError: where there is no :class:`FgoState`.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> state = fgo.target_acquisition(3e-3).init({"w": jnp.ones(2)})
      >>> int(fgo.restart(state).clock.total_step)
      0

    Source: section 4 of the FGO paper.
    """

    def begin(state: FgoState) -> FgoState:
        fresh = clock_init(state.clock.started.shape[-1])
        # As the old one in shape and sharding: the state may be stacked, or lie on a mesh.
        clock = jax.tree.map(filled_like, state.clock, fresh)
        slow = state.slow
        if isinstance(slow, SlowMomentumState):
            slow = slow._replace(averaged_steps=jnp.zeros_like(slow.averaged_steps))
        judged = _unjudged(state.trigger_states)
        return state._replace(clock=clock, slow=slow, trigger_states=judged)

    opt_state = mapped(begin, opt_state)
    opt_state = mapped_nodes(KeepBestState, searched_anew, opt_state)
    return mapped_nodes(AccumulateState, emptied, opt_state)


def _unjudged(trigger_states: Any) -> Any:
    """Clears the verdicts of the run before; the next update resets the rest."""

    def cleared(condition: ConditionState) -> ConditionState:
        return condition._replace(counts=jnp.zeros_like(condition.counts))

    return jax.tree.map(
        cleared, trigger_states, is_leaf=lambda node: isinstance(node, ConditionState)
    )
