"""Adam and momentum, with schedules that know more or less of the horizon."""

from __future__ import annotations

import optax

from benchmarks.methods import schedules
from benchmarks.methods.method import KNOWS_T, Method, alone, pair


def _adam(schedule_of=schedules.constant):
    return alone(lambda task: optax.scale_by_adam(), schedule_of)


METHODS = (
    *pair("constant", build=_adam(), transform="optax.adam"),
    Method("two_step", _adam(schedules.two_step), note=KNOWS_T),
    Method("cosine", _adam(schedules.cosine), note=KNOWS_T),
    Method("wsd_linear", _adam(schedules.wsd_linear), note=KNOWS_T),
    Method("wsd_1_minus_sqrt", _adam(schedules.wsd_1_minus_sqrt), note=KNOWS_T),
    *pair("1_over_sqrt_t", build=_adam(schedules.one_over_sqrt_t)),
    Method("sgd_momentum", alone(lambda task: optax.trace(0.9)), only="quadratic_bowl"),
)
