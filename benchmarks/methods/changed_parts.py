"""The three phases with one part changed, or with switch times that are given."""

from collections.abc import Callable
from typing import Any

import optax

import fgo_jax as fgo
from benchmarks.methods.method import Method
from benchmarks.methods.three_phases import target_acquisition
from benchmarks.rival_triggers import at_steps
from benchmarks.tasks.task import Task

DECAYS = (
    "adaptive", "hyperbolic", "inverse_sqrt", "linear", "one_minus_sqrt", "cosine", "exponential",
)  # fmt: skip
# Steps between measurements of the matvec probes, whose own default is for longer runs.
EVERY = 40

_RESTS = fgo.triggers.stall("intrinsic_dimension")
_NOT_RISING = fgo.triggers.if_given(~fgo.triggers.increasing("loss"), "loss", otherwise=1)
# The default triggers without `agreement`, which only the default probe measures. Nothing of
# the default end of re-ask is then left. A dimension at rest takes its place.
_DIMENSION_ONLY: dict[str, Any] = {
    "triggers": {
        "acquisition": fgo.triggers.stopped_falling("intrinsic_dimension") & _NOT_RISING,
        "reask": _RESTS,
    }
}
_UNTIL_REST = {"triggers": {"reask": _RESTS & fgo.triggers.defaults()["reask"]}}


def _curvature_probe(name: str):
    def parts(task: Task):
        def predict(params, batch):
            outputs = task.predict(params, batch)
            # One number per example, as on the bowl, is an output of one entry.
            return outputs[..., None] if outputs.ndim == 1 else outputs

        operator = fgo.curvature.ggn(predict, task.loss_name)
        make = getattr(fgo.probes, name)
        probe = make(operator, every=EVERY, examples=task.batch_size)
        return {"probe": probe, **_DIMENSION_ONLY}

    return parts


def _changed(
    name: str, parts: Callable[[Task], dict[str, Any]], needs_batch: bool = False
) -> Method:
    def build(task, hp):
        return target_acquisition(task, hp, **parts(task))

    return Method(f"fgo_{name}", build, phased=True, cadence=10, needs_batch=needs_batch)


def _at_steps(task, hp):
    triggers = dict(zip(("acquisition", "reask"), at_steps(hp["first"], hp["second"]), strict=True))
    return target_acquisition(task, hp, triggers=triggers)


METHODS = (
    Method("fgo_at_steps", _at_steps, phased=True, cadence=10, note="is told when to switch"),
    _changed("until_rest", lambda task: _UNTIL_REST),
    _changed("dimension_only", lambda task: _DIMENSION_ONLY),
    _changed("hutchinson", _curvature_probe("hutchinson"), needs_batch=True),
    _changed("lanczos", _curvature_probe("lanczos"), needs_batch=True),
    _changed("adam_first", lambda task: {"transform": {"acquisition": optax.scale_by_adam()}}),
    _changed("adam_throughout", lambda task: {"transform": optax.scale_by_adam()}),
    _changed("changed", lambda task: {}),  # by numbers, which come with the settings
    # The protocol's own decay follows the momentum, so without one it needs another.
    _changed("no_momentum", lambda task: {"slow_share": None, "decay": "hyperbolic"}),
    *(_changed(f"decay_{d}", lambda task, d=d: {"decay": d}) for d in DECAYS),
)
