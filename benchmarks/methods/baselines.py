"""Adam and momentum, at rates that know more or less of what is to come."""

from __future__ import annotations

import optax

from benchmarks import schedules
from benchmarks.methods.method import (
    KNOWS_T,
    Method,
    constant_schedule,
    pair,
    two_step_schedule,
)


def _constant(task, hp):
    return optax.adam(constant_schedule(task, hp))


def _two_step(task, hp):
    return optax.adam(two_step_schedule(task, hp))


def _cosine(task, hp):
    return optax.adam(schedules.cosine(hp["learning_rate"], task.warmup_steps, task.num_steps))


def _sgd_momentum(task, hp):
    return optax.sgd(constant_schedule(task, hp), momentum=0.9)


METHODS = (
    *pair("constant", build=_constant, transform="optax.adam"),
    Method("two_step", _two_step, note=KNOWS_T),
    Method("cosine", _cosine, note=KNOWS_T),
    Method("sgd_momentum", _sgd_momentum, only="quadratic_bowl"),
)
