"""Target acquisition: the three phases with their triggers, ready for use."""

from __future__ import annotations

from typing import Any

import optax

from fgo_jax import _checks, triggers
from fgo_jax.controller.update import phased
from fgo_jax.phases.builders import acquisition as acquisition_phase
from fgo_jax.phases.builders import execution as execution_phase
from fgo_jax.phases.builders import reask as reask_phase
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from fgo_jax.probes.gradient_stream import gradient_stream
from fgo_jax.probes.probe import Probe
from fgo_jax.triggers import Trigger

STATIC_ARGS = (
    "mask",
    "acquisition",
    "refinement",
    "execution",
    "probe",
    "acquisition_trigger",
    "reask_trigger",
    "stop_trigger",
    "decay",
    "deadlines",
    "axis_name",
    "seed",
)


def default_acquisition_trigger() -> Trigger:
    """The dimension's collapse is over, gradients are mostly noise, the loss does not rise."""
    return (
        triggers.stopped_falling("intrinsic_dimension")
        & triggers.below("agreement", 0.75)
        & triggers.if_given(~triggers.increasing("loss"), "loss", otherwise=1)
    )


def default_reask_trigger() -> Trigger:
    """Gradients are mostly noise, which a falling rate would damp."""
    return triggers.below("agreement", 0.75)


def default_decay_onset(averaged: bool) -> float:
    """Noise makes the rate fall; where an average of the weights damps it, rest alone does."""
    return 1.0 if averaged else 0.0


def default_stop_trigger() -> Trigger:
    """Ten validations without an improvement; never, where none is reported."""
    return triggers.if_given(triggers.plateau("validation", patience=10), "validation", otherwise=0)


def target_acquisition(
    learning_rate: float | optax.Schedule,
    warmup_steps: int = 100,
    *,
    weight_decay: float = 0.0,
    mask: Any = None,
    clip_norm: float | None = None,
    cut: float = 0.0,
    slow_share: float | None = 0.5,
    decay: str = "adaptive",
    decay_ratio: float = 1.0,
    decay_steps: int | None = None,
    decay_onset: float | None = None,
    acquisition: optax.GradientTransformation | None = None,
    refinement: optax.GradientTransformation | None = None,
    execution: optax.GradientTransformation | None = None,
    probe: Probe | None = None,
    acquisition_trigger: Trigger | None = None,
    reask_trigger: Trigger | None = None,
    stop_trigger: Trigger | None = None,
    handover_steps: int = 40,
    total_steps: int | None = None,
    deadlines: tuple[float, float] | None = None,
    average_weights: float | None = None,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Friction-Guided Optimization: three phases that end when the geometry says so.

    1. Acquisition: warm-up to ``learning_rate``, updates by ``acquisition``. It ends when
       the intrinsic dimension of the gradient noise has stopped falling, successive
       gradients agree in less than three quarters of their energy, and the loss is not
       known to rise.
    2. Re-ask: updates by ``refinement`` (a natural gradient), of which a share of
       ``slow_share`` comes from :func:`fgo_jax.slow_momentum`: the rate of what a single
       gradient says is cut by that share, the rate of what the gradients of this phase agree
       on is not. It ends when gradients are mostly noise in its own metric; where that is
       acquisition's too, as by default, about ``handover_steps`` after it began.
    3. Execution: the same transform and share. The rate falls by up to 1/(1 + s/(kappa t1)),
       s steps after a start at t1, and by the less the more the slow momentum still says:
       while its energy falls no faster than it would by noise (raw weights: while it does not
       fall), the rate stays. It never ends; :func:`fgo_jax.should_stop` tells when ten
       reported ``validation_value`` in a row brought no improvement.

    The dimension is measured in the metric of the transform that makes the updates. All of
    it is decided inside the compiled step from a sketch of the gradients that training
    computes anyway. No horizon is needed. While gradients agree, as they do where
    there is no noise, no phase ends: there is nothing to damp.

    The update takes the extra arguments that :func:`fgo_jax.phased` lists, none of them
    required by the defaults.

    Args:
      learning_rate: the peak; a number or an optax schedule. Tune this one: since later
        phases damp what is noise in it, it is best above the refinement's best constant rate.
      warmup_steps: length of the linear warm-up; also the least length of acquisition.
      weight_decay: decoupled, scaled by the effective rate, as in `optax.adamw`.
      mask: as in `optax.adamw`.
      clip_norm: global norm to clip to, after the probe. Prefer it to a
        `clip_by_global_norm` before this in a chain, where the probe would measure clipped
        gradients.
      cut: share of the rate that re-ask takes away, from the slow momentum as well.
      slow_share: of the slow momentum from re-ask on; None keeps none, and then `decay` must
        be another one than ``adaptive``, which follows it.
      decay: law of execution; see :func:`fgo_jax.execution`.
      decay_ratio: kappa, the decay's length relative to the steps before it.
      decay_steps: the decay's length in steps, instead.
      decay_onset: how fast the slow momentum's energy must fall for an adaptive decay to
        begin, as a power of 1/t; None is 0, or 1 (as noise does) with ``average_weights``.
        Other laws do not read it.
      acquisition: gradient transformation of phase 1; None is the refinement itself. The
        paper's is a plain one: `optax.scale_by_adam()` makes cheaper steps, at the price
        of more of them and of a second state.
      refinement: of phase 2; None is :func:`fgo_jax.scale_by_kronecker_fisher`.
      execution: of phase 3; None keeps phase 2's.
      probe: what is measured; None is :func:`fgo_jax.probes.gradient_stream`.
      acquisition_trigger: ends phase 1 instead of the rule above.
      reask_trigger: ends phase 2 instead of the rule above.
      stop_trigger: raises the flag of :func:`fgo_jax.should_stop` in phase 3.
      handover_steps: length of a hand-over, in which the next transform's statistics fill.
      total_steps: the horizon, where it is known: phases then have deadlines and the decay
        ends there.
      deadlines: shares of ``total_steps`` by which phases 1 and 2 end; (0.35, 0.7).
      average_weights: window of :func:`fgo_jax.average_weights`, 0.1 being a good one;
        None keeps no average.
      axis_name: as in :func:`fgo_jax.phased`.
      seed: of the probe's key.

    Returns:
      A gradient transformation with state :class:`fgo_jax.FgoState`. State, in bytes per
      parameter: 8 and the factors for the refinement, 4 for the slow momentum, 4 for an
      average, and that of ``acquisition`` where one is given (8 for Adam).

    Raises:
      ValueError: for arguments out of range, or an adaptive decay without slow momentum.
      TypeError: in ``update``, where a probe or trigger of yours needs an extra argument.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3, warmup_steps=100, average_weights=0.1)
      >>> params = {"w": jnp.ones((2, 3))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params, value=jnp.float32(1.0))
      >>> params = optax.apply_updates(params, updates)

    Under `optax.inject_hyperparams` pass ``static_args=fgo.STATIC_ARGS``; with bfloat16
    parameters also ``hyperparam_dtype=jnp.float32``, or the rate is stored in bfloat16.

    Source: Friction-Guided Optimization (2026), section 4. The paper cuts the whole rate in
    re-ask and asks that the loss still fall; here only a rise is an obstacle, to the end of
    acquisition alone, since a loss at rest is no less a reason to go on. Its acquisition
    takes plain gradients; where that was measured, the first hundred steps of Adam cost the
    natural gradient two hundred.
    """
    if probe is None:
        probe = gradient_stream()
    if refinement is None:
        refinement = scale_by_kronecker_fisher()
    if acquisition is None:
        acquisition = refinement  # the very same object: one state, and no hand-over
    if decay_onset is None:
        decay_onset = default_decay_onset(average_weights is not None)
    _checks.integer("warmup_steps", warmup_steps, 0)
    return phased(
        [
            acquisition_phase(learning_rate, warmup_steps, acquisition, weight_decay, mask),
            reask_phase(
                learning_rate,
                cut,
                refinement,
                weight_decay,
                mask,
                slow_share,
            ),
            execution_phase(
                learning_rate,
                cut,
                decay,
                decay_steps,
                decay_ratio,
                transform=execution,
                weight_decay=weight_decay,
                mask=mask,
                slow_share=slow_share,
                decay_onset=decay_onset,
            ),
        ],
        [
            default_acquisition_trigger() if acquisition_trigger is None else acquisition_trigger,
            default_reask_trigger() if reask_trigger is None else reask_trigger,
            default_stop_trigger() if stop_trigger is None else stop_trigger,
        ],
        probe,
        handover_steps=handover_steps,
        min_steps=(warmup_steps, handover_steps, 0),
        total_steps=total_steps,
        deadlines=deadlines,
        clip_norm=clip_norm,
        average_weights=average_weights,
        axis_name=axis_name,
        seed=seed,
    )
