"""Numbers about a run, read from its state."""

from __future__ import annotations

from typing import Any

import jax

from fgo_jax.controller.descent import mean_cosine, points_uphill
from fgo_jax.controller.state import FgoState, phase_names
from fgo_jax.precondition.layer_noise import layer_numbers
from fgo_jax.smoothing.energy_exponent import EnergyFallState, energy_exponent
from fgo_jax.smoothing.slow_momentum import SlowMomentumState
from fgo_jax.steering.find import states_in


def telemetry(opt_state: Any) -> dict[str, jax.Array]:
    """Numbers that describe a run, as scalars.

    - ``phase`` (index), ``phase_step``, ``total_step``, ``handover_left``, ``learning_rate``;
    - ``started/PHASE`` and ``cause/PHASE``: the step at which the phase of that name began
      (-1: not yet) and why (0 not yet, 1 the trigger before it, 2 a deadline, 3 by hand, 4 the
      start of the run);
    - each signal by its name: ``loss``, ``intrinsic_dimension``, ...; NaN until measured, and
      where the newest measurement has no answer, as for gradients that are all zero (the
      intrinsic dimension then keeps its last value);
    - ``condition/PHASE/NAME``: verdict of each condition that ends the phase: 1 holds, -1 does
      not, 0 unknown. In a run that stays in a phase these say what is missing;
    - ``bound/PHASE/NAME``: the number that the condition compares with, NaN where it has none;
    - ``uphill``: whether the directions of the transform go up the measured gradient, so that
      training climbs the loss: their mean ``cosine`` with the raw gradients, over the last
      sixteen measurements, is negative by four standard errors. Then the transform has a minus
      sign of its own, or gradients and loss do not belong together. ``cosine`` is NaN until
      measured, which takes place every 4 steps at first and every 1 % of the steps later;
    - ``slow_share``: share of the slow momentum in the last direction, where a phase has one;
    - ``energy_exponent``: q, where the energy of the slow momentum falls as 1/t^q, which an
      adaptive decay follows; NaN until measured;
    - ``layer_noise/PATH`` and ``layer_rate/PATH`` of each leaf under
      :func:`fgo_jax.scale_by_layer_noise`;
    - ``skipped_steps``, ``stop``.

    ``help(fgo_jax)`` explains agreement, energy rank, energy exponent, slow momentum, hand-over and
    metric. :func:`fgo_jax.explain` says the same as the numbers in words.

    For a history, return the telemetry from the step of a `jax.lax.scan`, as in the example, or
    collect the dicts in a list. `fgo_jax.plotting.run` draws both. The keys are legal tags of
    TensorBoard and other log writers.

    Args:
      opt_state: any optax state that holds one :class:`FgoState` or more (through
        `chain`, `masked`, `partition`, `MultiSteps`, `inject_hyperparams`, ...).

    Returns:
      A flat dict of scalars. With several states, keys are prefixed by the state's path, as in
      ``inner_states/LABEL/inner_state/phase`` under `optax.partition`.

    Raises:
      ValueError: where there is no :class:`FgoState`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = fgo.phased([fgo.acquisition(0.1, transform=optax.identity())], [])
      >>> def step(carry, batch):
      ...     params, opt_state = carry
      ...     loss, grads = jax.value_and_grad(lambda p: jnp.mean((p - batch) ** 2))(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params, value=loss)
      ...     return (optax.apply_updates(params, updates), opt_state), fgo.telemetry(opt_state)
      >>> params, batches = jnp.ones(2), jnp.zeros((5, 2))
      >>> carry, history = jax.lax.scan(step, (params, tx.init(params)), batches)
      >>> history["total_step"].tolist()
      [1, 2, 3, 4, 5]

    Source: the quantities of section 4 of the FGO paper.
    """
    states = states_in(opt_state)
    if len(states) == 1:
        return _numbers(next(iter(states.values())))
    return {
        f"{path}/{name}": number
        for path, state in states.items()
        for name, number in _numbers(state).items()
    }


def _numbers(state: FgoState) -> dict[str, jax.Array]:
    clock = state.clock
    numbers = {
        "phase": clock.phase,
        "phase_step": clock.phase_step,
        "total_step": clock.total_step,
        "handover_left": clock.handover_left,
        "learning_rate": state.fgo_learning_rate,
        "skipped_steps": state.skipped_steps,
        "stop": clock.stop_flag,
        "uphill": points_uphill(state.descent),
        "cosine": mean_cosine(state.descent),
        **{name: pair[..., 0] for name, pair in state.signals.items()},
    }
    if isinstance(state.slow, SlowMomentumState):
        numbers["slow_share"] = state.slow.share
    if isinstance(state.energy_fall, EnergyFallState):
        numbers["energy_exponent"] = energy_exponent(state.energy_fall)
    numbers |= layer_numbers(state.transforms)
    for index, phase in enumerate(phase_names(state)):
        numbers[f"started/{phase}"] = clock.started[..., index]
        numbers[f"cause/{phase}"] = clock.causes[..., index]
    for key, conditions in sorted(state.trigger_states.items()):
        phase = key.partition("_")[2]
        for name, condition in conditions.items():
            numbers[f"condition/{phase}/{name}"] = condition.verdict
            numbers[f"bound/{phase}/{name}"] = condition.bound
    return numbers
