"""Natural gradient with Kronecker factors: the refinement of the phases, by itself."""

from typing import Any

import optax

import fgo_jax as fgo
from benchmarks.methods import schedules
from benchmarks.methods.method import KNOWS_T, Method, alone, kronecker_fisher, pair

_FIELDS: dict[str, Any] = {"natural": True, "cadence": 10}


def _with_slow_momentum(task):
    """The parts of the phases from the first step on, without phases."""
    return optax.chain(kronecker_fisher(task), fgo.slow_momentum())


def _pair(name, schedule_of=schedules.constant, transform_of=kronecker_fisher, **fields):
    build = alone(transform_of, schedule_of)
    return pair(f"natural_gradient{name}", build=build, **_FIELDS, **fields)


def _scheduled(name, schedule_of, note=""):
    build = alone(kronecker_fisher, schedule_of)
    return Method(f"natural_gradient_{name}", build, note=note, **_FIELDS)


METHODS = (
    *_pair("", transform="scale_by_kronecker_fisher"),
    *_pair("_1_over_sqrt_t", schedules.one_over_sqrt_t),
    _scheduled("1_over_t", schedules.one_over_t),
    _scheduled("two_step", schedules.two_step, KNOWS_T),
    _scheduled("cosine", schedules.cosine, KNOWS_T),
    _scheduled("wsd_1_minus_sqrt", schedules.wsd_1_minus_sqrt, KNOWS_T),
    *_pair("_slow_momentum", transform_of=_with_slow_momentum),
)
