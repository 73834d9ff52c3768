"""One step of an optimizer of phases, stage by stage."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import optax

from fgo_jax.controller.design import EXTRA_SIGNALS, Design, design
from fgo_jax.controller.direction import direction
from fgo_jax.controller.extras import checked_extras
from fgo_jax.controller.guard import all_finite, check_arrays, check_shapes, check_state, skipped
from fgo_jax.controller.measure import latest, measure, observed
from fgo_jax.controller.rate import decay_exponent, effective_rate, scaled
from fgo_jax.controller.smooth import average, smooth
from fgo_jax.controller.state import FgoState, state_init
from fgo_jax.controller.transition import advance, judge
from fgo_jax.controller.uphill import check_directions
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.mesh import on_mesh
from fgo_jax.linalg.ordering import ordered_after
from fgo_jax.phases.phase import Phase
from fgo_jax.probes.probe import Probe
from fgo_jax.triggers import Trigger


def update_step(
    design: Design, grads: Any, state: FgoState, params: Any, extras: dict[str, Any]
) -> tuple[Any, FgoState]:
    """Updates and new state; a step that is not finite changes `skipped_steps` alone."""
    check_state(design, state, grads if params is None else params)
    extras = checked_extras(design, extras, params)
    check_shapes(grads, params, state)
    finite = all_finite(grads, extras.get("value"), design.axis_name)

    model = extras.get("probe_params", params)
    probe_state, estimates = measure(design, state, grads, model, extras, finite)
    observe = functools.partial(observed, design, state, probe_state, estimates, extras)
    given = observe(EXTRA_SIGNALS)
    holds, trigger_states = judge(design, state, observe, finite)

    # The probe may read the transforms' states: it does so before they change.
    ready = finite if design.probe is None else ordered_after(finite, probe_state.evaluations)
    towards, transforms, grafts, descent = direction(design, state, grads, params, extras, ready)
    towards, slow, energy = smooth(design, state, towards, finite)
    rate = effective_rate(design, state.clock)
    updates = scaled(towards, grads, params, rate, finite)

    exponent = decay_exponent(design, state.clock, energy)
    clock = advance(design, state.clock, holds, rate, exponent, given)
    new = FgoState(
        clock=optax.tree.where(finite, clock, state.clock),
        skipped_steps=skipped(finite, state.skipped_steps),
        fgo_learning_rate=optax.tree.where(finite, rate, state.fgo_learning_rate),
        signals=latest(state, estimates, given, finite),
        probe_key=state.probe_key,
        probe_state=probe_state,
        trigger_states=trigger_states,
        transforms=transforms,
        grafts=grafts,
        descent=descent,
        slow=slow,
        energy_fall=energy,
        average=average(design, state, params, finite),
    )
    return updates, optax.tree.cast_like(new, state)


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

    A trigger that holds at step t ends its phase at t + 1. Two things then happen:

    - Over the next ``handover_steps`` the learning rate moves, evenly on a log scale, from
      where it was to the new phase's.
    - If the new phase has another gradient transformation, the old one makes the updates for
      these steps while the statistics of the new one fill. Then the new one's updates are
      scaled, tensor by tensor, to the norm that the old one's had. If neither the new
      nor the first phase's transform shrinks its updates with the gradients (Adam), the scaling
      fades over as many steps again. Otherwise (SGD, K-FAC) it stays, so a learning rate keeps
      the unit of the first phase's transform. ``keeps_scale`` of
      :class:`fgo_jax.precondition.Preconditioner` says which; without it, a short trial does.

    The update takes these optional extra arguments, and passes them and all others on to the
    phases' transforms:

    | argument | what it is |
    |---|---|
    | ``value`` | the loss, a scalar |
    | ``validation_value`` | a validation loss, a scalar; NaN at steps where none was measured |
    | ``batch`` | for a probe that runs the model |
    | ``probe_params`` | the whole parameter tree, under `optax.masked` or `optax.partition` |

    A ``validation_value`` is one report. A value held over several steps, until the next
    validation, counts once; report an equal result again after a NaN. Under `optax.MultiSteps`
    only the last micro-step's extra arguments arrive, so report at every micro-step, or use
    :func:`fgo_jax.accumulate`.

    A step is skipped where a gradient or ``value`` is not finite, or so large (a norm of
    1e18) that squares overflow float32. It gives zero updates and changes nothing but the
    counter ``skipped_steps``. Later members of a chain still run.

    Args:
      phases: at least one :class:`fgo_jax.Phase`.
      triggers: one for each phase but the last. One more belongs to the last phase: it raises
        the flag that :func:`fgo_jax.should_stop` reads.
      probe: measures the signals that the triggers read.
      handover_steps: length of a hand-over, in steps.
      min_steps: least number of updates in a phase before its trigger may end it; one number, or
        one for each phase. A deadline does not wait for them.
      total_steps: the horizon, in steps; None where it is unknown.
      deadlines: with ``total_steps``, the share of it by which each phase but the last ends.
        By default they are evenly spaced up to 0.7. They end no phase that was entered by hand
        after its deadline.
      clip_norm: global norm to clip to. The probe still sees the raw gradients.
      average_weights: window c of :func:`fgo_jax.average_weights`, in [0, 1]; None keeps no
        average. Where a phase's transform has a ``momentum_dtype`` of bfloat16, average and slow
        momentum have it too. They are rounded at random, so that small steps are not lost.
      axis_name: inside `jax.pmap` or `jax.shard_map`, the axis over which ``value``,
        ``validation_value`` and what a probe measures on ``batch`` (each device's part) are
        averaged, so that all devices decide alike. The probe gets it from here. Gradients must
        be averaged already, as for any optax transformation.
      seed: of the probe's key.

    Returns:
      A gradient transformation with state :class:`fgo_jax.FgoState`. Like an optax alias it
      applies the learning rate.

    Raises:
      ValueError: for no phases, a wrong number of triggers, a trigger on a signal that
        nothing provides, something else as ``probe``, a signal with a name that telemetry
        uses, a first phase whose decay has no length, numbers out of range, or two phases of
        one name; in ``init``, for a transform that has a learning rate of its own; in
        ``update``, for gradients of the wrong shape, a ``value`` or a scheduled
        learning rate that is no scalar, and a state that was made with other options.
      TypeError: in ``update``, for a missing extra argument that a probe or trigger needs,
        and for a misspelt one.

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
    parts = design(
        phases,
        triggers,
        probe,
        handover_steps=handover_steps,
        min_steps=min_steps,
        total_steps=total_steps,
        deadlines=deadlines,
        clip_norm=clip_norm,
        average_weights=average_weights,
        axis_name=axis_name,
        seed=seed,
    )

    def init(params: Any) -> FgoState:
        # Not at construction: it computes, and `jax.distributed.initialize` must come first.
        check_directions(parts.phases)
        check_arrays(params)
        return state_init(parts, params)

    def update(updates: Any, state: Any, params: Any = None, **extras: Any) -> tuple[Any, Any]:
        return update_step(parts, updates, state, params, extras)

    return optax.GradientTransformationExtraArgs(on_mesh(init), compiled_once(update))
