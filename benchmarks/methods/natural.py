"""Natural gradient with Kronecker factors: the refinement of the phases, by itself."""

from __future__ import annotations

from benchmarks import schedules
from benchmarks.methods.method import (
    KNOWS_T,
    TRANSFORM_TASKS,
    Method,
    alone,
    kronecker_fisher,
    pair,
    sources,
    two_step_schedule,
)

_USES = sources("kronecker_fisher")
_CADENCE = 10


def _one_over_t_schedule(task, hp):
    return schedules.power(hp["learning_rate"], task.warmup_steps, hp["t0"], 1.0)


def _one_over_sqrt_t_schedule(task, hp):
    """rate * sqrt(W / t) from the end of the warm-up, W steps long, on."""
    return schedules.power(hp["learning_rate"], task.warmup_steps, task.warmup_steps, 0.5)


def _shampoo(task):
    """Inverse fourth roots of both factors; square roots of both would be power 1/2."""
    import fgo_jax as fgo

    return fgo.scale_by_kronecker_fisher(power=0.25, corrected=False)


METHODS = (
    *pair(
        "natural_gradient",
        build=alone(kronecker_fisher),
        uses=_USES,
        transform="scale_by_kronecker_fisher",
        cadence=_CADENCE,
    ),
    *pair(
        "natural_gradient_1_over_sqrt_t",
        build=alone(kronecker_fisher, _one_over_sqrt_t_schedule),
        uses=_USES,
        cadence=_CADENCE,
    ),
    Method(
        "natural_gradient_1_over_t",
        alone(kronecker_fisher, _one_over_t_schedule),
        uses=_USES,
        only="quadratic_bowl",
        cadence=_CADENCE,
    ),
    Method(
        "natural_gradient_two_step",
        alone(kronecker_fisher, two_step_schedule),
        uses=_USES,
        note=KNOWS_T,
        only="quadratic_bowl",
        cadence=_CADENCE,
    ),
    Method(
        "shampoo_power",
        alone(_shampoo),
        uses=_USES,
        only=TRANSFORM_TASKS,
        transform="scale_by_kronecker_fisher(power=0.25, corrected=False)",
        cadence=_CADENCE,
    ),
)
