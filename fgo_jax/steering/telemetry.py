"""Reading an optimizer's state, and steering it by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.controller.state import BY_HAND, NOT_BEGUN, FgoState
from fgo_jax.phases import builders
from fgo_jax.smoothing.energy_exponent import EnergyFallState, energy_exponent
from fgo_jax.smoothing.slow_momentum import SlowMomentumState
from fgo_jax.triggers import ConditionState


def _states(opt_state: Any) -> dict[str, FgoState]:
    """Every FgoState in a tree, by its path."""
    found, _ = jax.tree_util.tree_flatten_with_path(
        opt_state, is_leaf=lambda node: isinstance(node, FgoState)
    )
    states = {
        jax.tree_util.keystr(path): node for path, node in found if isinstance(node, FgoState)
    }
    if not states:
        raise ValueError(
            "the state holds no FgoState: pass the optimizer state of fgo.target_acquisition or "
            "fgo.phased, wrapped as you like."
        )
    return states


def telemetry(opt_state: Any) -> dict[str, jax.Array]:
    """All that a run can tell about itself, as scalars.

    - ``phase``, ``phase_step``, ``total_step``, ``handover_left``, ``learning_rate``;
    - ``started/i``, ``cause/i``: the step at which phase i began (-1: not yet) and why
      (1 its predecessor's trigger, 2 a deadline, 3 by hand);
    - each signal by its name: ``loss``, ``intrinsic_dimension``, ...; NaN until measured;
    - ``condition/i/NAME``: verdict of each condition that ends phase i: 1 holds, -1 does
      not, 0 unknown. In a run that stays in a phase these say what is missing;
    - ``slow_share``: of the slow momentum in the last direction, where a phase has one;
    - ``energy_exponent``: q, where the energy of the slow momentum falls as 1/t^q, which an
      adaptive decay follows; NaN until measured;
    - ``skipped_steps``, ``stop``.

    Args:
      opt_state: any optax state that holds one :class:`FgoState` or more (through
        `chain`, `masked`, `partition`, `MultiSteps`, `inject_hyperparams`, ...).

    Returns:
      A flat dict of scalars; with several states, keys are prefixed by the state's path.

    Raises:
      ValueError: where there is no :class:`FgoState`.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3)
      >>> int(fgo.telemetry(tx.init({"w": jnp.ones(2)}))["phase"])
      0
    """
    states = _states(opt_state)
    if len(states) == 1:
        return _describe(next(iter(states.values())))
    return {
        f"{path}/{name}": number
        for path, state in states.items()
        for name, number in _describe(state).items()
    }


def _describe(state: FgoState) -> dict[str, jax.Array]:
    numbers = {
        "phase": state.phase,
        "phase_step": state.phase_step,
        "total_step": state.total_step,
        "handover_left": state.handover_left,
        "learning_rate": state.hyperparams["fgo_learning_rate"],
        "skipped_steps": state.skipped_steps,
        "stop": state.stop_flag,
        **state.signals,
    }
    if isinstance(state.slow, SlowMomentumState):
        numbers["slow_share"] = state.slow.share
    if isinstance(state.energy_fall, EnergyFallState):
        numbers["energy_exponent"] = energy_exponent(state.energy_fall)
    for index in range(state.started.shape[-1]):
        numbers[f"started/{index}"] = state.started[..., index]
        numbers[f"cause/{index}"] = state.causes[..., index]
    for index, conditions in enumerate(state.trigger_states):
        for name, condition in conditions.items():
            assert isinstance(condition, ConditionState)
            numbers[f"condition/{index}/{name}"] = condition.verdict
    return numbers


def should_stop(opt_state: Any) -> jax.Array:
    """Whether the last phase's trigger has fired: validation stopped improving.

    With several states in the tree, whether all of them say so.

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
    """
    return jnp.all(jnp.stack([state.stop_flag for state in _states(opt_state).values()]))


def force_phase(opt_state: Any, phase: str | int) -> Any:
    """Enters a phase by hand, as if its predecessor's trigger had fired.

    The next update still belongs to the running phase; the one after it begins the new
    one, with the usual hand-over.

    Args:
      opt_state: as in :func:`telemetry`; all states in it are asked.
      phase: "acquisition", "reask" or "execution" for the three-phase protocol, or the
        phase's index.

    Returns:
      The new state.

    Raises:
      ValueError: for a phase that is not there, or a name where there are not three phases.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> state = fgo.target_acquisition(3e-3).init({"w": jnp.ones(2)})
      >>> int(fgo.force_phase(state, "execution").requested_phase)
      2
    """
    named = isinstance(phase, str)
    if isinstance(phase, str):
        _checks.choice("phase", phase, builders.NAMES)
        phase = builders.NAMES.index(phase)

    def force(state: FgoState) -> FgoState:
        count = state.started.shape[-1]
        if named and count != len(builders.NAMES):
            raise ValueError(
                f"phases have names in the three-phase protocol alone, and here are {count}: pass "
                f"an index from 0 to {count - 1}."
            )
        if not 0 <= phase < count:
            raise ValueError(f"phase {phase} is not among the {count} phases 0 to {count - 1}.")
        return state._replace(requested_phase=jnp.full_like(state.requested_phase, phase))

    return _mapped(force, opt_state)


def restart(opt_state: Any) -> Any:
    """Begins again with phase 0 and its warm-up, keeping every learned statistic.

    For fine-tuning or a changed data set: step counts and triggers start over, the
    transforms' moments, the probe's last numbers and the average of the weights stay.

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
      >>> int(fgo.restart(state).total_step)
      0
    """

    def begin(state: FgoState) -> FgoState:
        # An array each: one buffer in two places could not be donated to a jitted step.
        zeros = (
            "total_step", "phase", "phase_step", "driver", "driver_since", "handover_left",
            "decay_exponent",
        )  # fmt: skip
        first = jnp.arange(state.started.shape[-1]) == 0
        return state._replace(
            requested_phase=jnp.full_like(state.requested_phase, -1),
            entry_rate=jnp.full_like(state.entry_rate, -1.0),
            started=jnp.where(first, 0, -1) + jnp.zeros_like(state.started),
            causes=jnp.where(first, BY_HAND, NOT_BEGUN) + jnp.zeros_like(state.causes),
            stop_flag=jnp.zeros_like(state.stop_flag),
            **{name: jnp.zeros_like(getattr(state, name)) for name in zeros},
        )

    return _mapped(begin, opt_state)


def _mapped(function: Callable[[FgoState], FgoState], opt_state: Any) -> Any:
    _states(opt_state)
    return jax.tree.map(
        lambda node: function(node) if isinstance(node, FgoState) else node,
        opt_state,
        is_leaf=lambda node: isinstance(node, FgoState),
    )
