"""Target acquisition: the three phases with their triggers, ready for use."""

from __future__ import annotations

from typing import Any

import optax

from fgo_jax import _checks, triggers
from fgo_jax.machine import phased
from fgo_jax.phases import acquisition as acquisition_phase
from fgo_jax.phases import execution as execution_phase
from fgo_jax.phases import reask as reask_phase
from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher
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
    """The dimension stands still in the new metric, and gradients are mostly noise."""
    return triggers.stall("intrinsic_dimension") & triggers.below("agreement", 0.75)


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
    cut: float = 0.5,
    decay: str = "hyperbolic",
    decay_ratio: float = 2.0,
    decay_steps: int | None = None,
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
    if probe is None:
        probe = gradient_stream()
    _checks.integer("warmup_steps", warmup_steps, 0)
    return phased(
        [
            acquisition_phase(learning_rate, warmup_steps, acquisition, weight_decay, mask),
            reask_phase(
                learning_rate,
                cut,
                scale_by_kronecker_fisher() if refinement is None else refinement,
                weight_decay,
                mask,
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
