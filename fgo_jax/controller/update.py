"""Joins phases: probe, triggers and transitions inside one pure update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.controller.handover import Plan, graft_init
from fgo_jax.controller.requirements import (
    EXTRA_SIGNALS,
    check_extras,
    check_parts,
    deadline_shares,
)
from fgo_jax.controller.state import BY_HAND, NOT_BEGUN, FgoState
from fgo_jax.controller.transition import Course
from fgo_jax.phases.phase import Phase, decayed, scaled
from fgo_jax.probes.probe import Probe, ProbeInputs
from fgo_jax.smoothing import average_weights as averaging
from fgo_jax.smoothing import energy_exponent, slow_momentum
from fgo_jax.triggers import Observation, Signal, Trigger


def phased(
    phases: Sequence[Phase],
    triggers: Sequence[Trigger],
    probe: Probe | None = None,
    *,
    handover_steps: int = 40,
    min_steps: int | Sequence[int] = 0,
    total_steps: int | None = None,
    deadlines: Sequence[float] | None = None,
    clip_norm: float | None = None,
    average_weights: float | None = None,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs phases one after the other, each until its trigger holds.

    A trigger that holds at step t ends its phase at t + 1. Over the next
    ``handover_steps`` the learning rate glides (evenly on a log scale) from where it was
    to the new phase's law; where the new phase brings another gradient transformation,
    the old one makes the updates meanwhile and the new one's statistics fill. When it
    takes over, each tensor's update keeps the norm that the old one gave it, and this
    graft fades over the same number of steps again.

    The update takes the optional extra arguments ``value`` (the loss), ``batch`` (for a
    probe that runs the model), ``validation_value`` (NaN where not measured) and
    ``probe_params`` (the whole parameter tree, under `optax.masked`); all of them go on
    to the phases' transforms with any others. A step with a non-finite gradient or
    ``value`` gives zero updates and changes nothing but the counter ``skipped_steps``;
    later members of a chain still run.

    Args:
      phases: at least one :class:`fgo_jax.Phase`.
      triggers: one for each phase but the last; one more ends the last phase, that is,
        raises the flag that :func:`fgo_jax.should_stop` reads.
      probe: measures the signals that the triggers read.
      handover_steps: length of a hand-over.
      min_steps: least number of updates in a phase; one number or one for each phase.
      total_steps: the horizon; None where it is unknown.
      deadlines: with ``total_steps``: share of it by which each phase but the last ends.
        By default evenly spaced up to 0.7.
      clip_norm: global norm to clip to. The probe still sees the raw gradients.
      average_weights: window c of :func:`fgo_jax.average_weights`; None keeps none.
      axis_name: inside `jax.pmap` or `jax.shard_map`: the axis over which ``value`` and
        ``validation_value`` are averaged, so that all devices decide alike. Gradients
        are expected to be averaged already, as for any optax transformation.
      seed: of the probe's key.

    Returns:
      A gradient transformation with state :class:`FgoState`. Like an optax alias it
      applies the learning rate.

    Raises:
      ValueError: for no phases, a wrong number of triggers, a trigger on a signal that
        nothing provides, numbers out of range.
      TypeError: in ``update``, for an extra argument that a probe or trigger needs.

    Example:
      >>> import optax
      >>> import fgo_jax as fgo
      >>> adam = optax.scale_by_adam()
      >>> tx = fgo.phased(
      ...     [fgo.acquisition(3e-3, transform=adam), fgo.execution(3e-3, transform=adam)],
      ...     [fgo.triggers.after(1000)],
      ... )

    Source: Friction-Guided Optimization (2026), section 4 and appendix A.3.
    """
    phases, triggers = tuple(phases), tuple(triggers)
    check_parts(phases, triggers, probe)
    count = len(phases)
    minima = tuple(min_steps) if isinstance(min_steps, Sequence) else (min_steps,) * count
    if len(minima) != count:
        raise ValueError(f"min_steps: give one number, or one for each of the {count} phases.")
    for minimum in minima:
        _checks.integer("min_steps", minimum, 0)
    _checks.integer("handover_steps", handover_steps)
    if total_steps is not None:
        _checks.integer("total_steps", total_steps)
    if clip_norm is not None:
        _checks.positive("clip_norm", clip_norm)
    if average_weights is not None:
        _checks.non_negative("average_weights", average_weights)
    shares = deadline_shares(deadlines, total_steps, count)
    plan = Plan.of(phases)
    course = Course(phases, triggers, plan, handover_steps, minima, total_steps, shares)

    def init(params: Any) -> FgoState:
        def i32(number: Any) -> jax.Array:
            return jnp.asarray(number, jnp.int32)

        provided = (*EXTRA_SIGNALS, *(() if probe is None else probe.signals))
        return FgoState(
            total_step=i32(0),
            phase=i32(0),
            phase_step=i32(0),
            requested_phase=i32(-1),
            driver=i32(0),
            driver_since=i32(0),
            handover_left=i32(0),
            entry_rate=jnp.full([], -1.0, jnp.float32),
            decay_exponent=jnp.zeros([], jnp.float32),
            started=i32([0] + [-1] * (count - 1)),
            causes=i32([BY_HAND] + [NOT_BEGUN] * (count - 1)),
            stop_flag=jnp.zeros([], jnp.bool_),
            skipped_steps=i32(0),
            hyperparams={"fgo_learning_rate": jnp.zeros([], jnp.float32)},
            signals={name: jnp.full([], jnp.nan, jnp.float32) for name in provided},
            probe_key=jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
            probe_state=() if probe is None else probe.init(params),
            trigger_states=tuple(trigger.init() for trigger in triggers),
            transforms=tuple(transform.init(params) for transform in plan.transforms),
            grafts=graft_init(params) if plan.fills else (),
            slow=slow_momentum.momentum_init(params) if course.has_slow_momentum else (),
            energy_fall=energy_exponent.energy_fall_init() if course.has_adaptive_decay else (),
            average=()
            if average_weights is None
            else averaging.average_init(params, average_weights),
        )

    def measure(probe: Probe, grads, state: FgoState, params, batch, finite):
        """The probe's new state and the signals' values, which only a measurement changes."""
        old = state.probe_state
        if len(plan.transforms) > 1:
            begun = finite & (state.driver_since == state.total_step) & (state.total_step > 0)
            old = jax.tree.map(lambda a, b: jnp.where(begun, a, b), probe.renew(old), old)
        key = _step_key(state.probe_key, state.total_step)
        inputs = ProbeInputs(grads, None, params, batch, key, state.total_step)
        probe.check(inputs)

        # All that a measurement needs is worked out inside its branch, the key as well: each
        # operation outside would cost a microsecond of every step.
        def run(inputs, transforms, driver, old, signals):
            del signals
            rows = plan.rows(inputs.grads, transforms, driver)
            key = _step_key(inputs.key, inputs.step)
            inputs = inputs._replace(rows=rows, key=key)
            new = optax.tree.cast_like(probe.measure(inputs, old), old)
            return new, {name: estimate.value for name, estimate in probe.read(new).items()}

        return jax.lax.cond(
            finite & probe.due(old, state.total_step),
            run,
            lambda inputs, transforms, driver, old, signals: (old, signals),
            inputs._replace(key=state.probe_key), state.transforms, state.driver, old,
            {name: state.signals[name] for name in probe.signals},
        )  # fmt: skip

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value: Any = None,
        batch: Any = None,
        validation_value: Any = None,
        probe_params: Any = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        grads = updates
        offered = {"value": value, "batch": batch, "validation_value": validation_value}
        given = {name: item for name, item in offered.items() if item is not None}
        model = params if probe_params is None else probe_params
        if probe_params is not None:
            extra["probe_params"] = probe_params
        check_extras(probe, triggers, given, model)
        for name in EXTRA_SIGNALS.values():
            if name in given and axis_name is not None:
                given[name] = jax.lax.pmean(given[name], axis_name)
        finite = _all_finite(grads, given.get("value"), axis_name)

        probe_state: Any = ()
        latest, signals = {}, {}
        if probe is not None:
            probe_state, latest = measure(probe, grads, state, model, batch, finite)
            measured = probe_state.evaluations != state.probe_state.evaluations
            signals = {
                name: Signal(*estimate, measured)
                for name, estimate in probe.read(probe_state).items()
            }
        for signal, name in EXTRA_SIGNALS.items():
            if name in given:
                number = jnp.asarray(given[name], jnp.float32)
                unknown = jnp.full([], jnp.nan, jnp.float32)
                signals[signal] = Signal(number, unknown, ~jnp.isnan(number))
        rate = course.rate(state)
        running = finite & (state.handover_left == 0)
        holds, trigger_states = course.judge(
            state, Observation(signals, state.phase_step, state.total_step), running
        )

        since = (state.total_step - state.driver_since).astype(jnp.float32)
        filled = (handover_steps - state.handover_left).astype(jnp.float32)
        driving, coming = plan.cast(state.driver, state.phase)
        ready = finite
        if probe is not None:
            # True, but XLA does not know: the transforms thus wait for the probe, which may
            # read their states. Unordered, it would be given copies of them at every step.
            ready &= probe_state.evaluations >= 0
        direction, transforms, grafts = plan.direction(
            grads,
            params,
            state.transforms,
            state.grafts,
            driving=jnp.where(ready, driving, -1),
            coming=jnp.where(ready, coming, -1),
            graft_weight=jnp.maximum(1.0 - since / handover_steps, 0.0),
            # Later steps count more: the new statistics are still filling.
            fill_share=2.0 / (filled + 2.0),
            clip_norm=clip_norm,
            extras={**extra, **given},
        )
        # Outside the switch, where it fuses with what follows, and before the slow momentum:
        # at rest it is with the decay that directions cancel.
        direction = decayed(phases, state.phase, direction, params)
        slow, falling = state.slow, state.energy_fall
        decay_exponent, slow_taken = state.decay_exponent, finite
        if course.has_adaptive_decay:
            falling = energy_exponent.energy_fall_update(
                falling,
                slow,
                finite,
                anew=state.driver_since == state.total_step,
            )
            decay_exponent = course.adapted(state, energy_exponent.energy_exponent(falling))
            slow_taken &= falling.measurements >= 0  # as `ready`: measured before it moves
        if course.has_slow_momentum:
            direction, slow = slow_momentum.momentum_update(
                slow,
                direction,
                course.slow_share(state),
                ramp_steps=handover_steps,
                taken=slow_taken,
            )
        updates = scaled(direction, grads, params, jnp.where(finite, rate, 0.0))

        average = state.average
        if average_weights is not None:
            if params is None:
                raise ValueError(
                    "average_weights needs the parameters: call update(grads, state, params)."
                )
            average = averaging.average_update(average, params, average_weights, finite)

        moved = course.advance(state, holds, rate, decay_exponent)
        new = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b),
            moved._replace(
                hyperparams={"fgo_learning_rate": rate},
                **_untouched(),
            ),
            state._replace(**_untouched()),
        )
        new = new._replace(
            skipped_steps=state.skipped_steps + jnp.where(finite, 0, 1),
            signals=latest
            | {
                name: jnp.where(finite & signals[name].fresh, signals[name].value, old)
                if name in signals
                else old
                for name, old in state.signals.items()
                if name not in latest
            },
            probe_key=state.probe_key,
            probe_state=probe_state,
            trigger_states=trigger_states,
            transforms=transforms,
            grafts=grafts,
            slow=slow,
            energy_fall=falling,
            average=average,
        )
        return updates, optax.tree.cast_like(new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _untouched() -> dict[str, tuple[()]]:
    """Fields that guard themselves, left out of the select over the scalars."""
    return dict.fromkeys(
        (
            "signals",
            "probe_key",
            "probe_state",
            "trigger_states",
            "transforms",
            "grafts",
            "slow",
            "energy_fall",
            "average",
        ),
        (),
    )


def _step_key(data: jax.Array, step: jax.Array) -> jax.Array:
    """A key of this step's own.

    Threefry of different keys is independent, so counting in the key is as good as
    `jax.random.fold_in`, which runs a hash. The count goes to the first word; the second one
    holds the user's seed.
    """
    counted = data + jnp.stack([step.astype(jnp.uint32), jnp.zeros([], jnp.uint32)])
    return jax.random.wrap_key_data(counted, impl="threefry2x32")


def _all_finite(grads: Any, value: Any, axis_name: str | None) -> jax.Array:
    # 0 x is zero for every number and NaN for the rest. A sum of it is one pass that vector
    # units are good at; a test of each entry and a logical reduction are up to three.
    leaves = [jnp.asarray(x) for x in (*jax.tree.leaves(grads), *jax.tree.leaves(value))]
    sums = [jnp.sum(x * 0).astype(jnp.float32) for x in leaves if x.size]
    finite = sum(sums[1:], sums[0]) == 0 if sums else jnp.asarray(True)
    if axis_name is not None:
        finite = jax.lax.pmin(finite.astype(jnp.int32), axis_name) == 1
    return finite
