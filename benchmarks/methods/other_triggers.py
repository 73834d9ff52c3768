"""The three phases with the triggers of others: only what ends a phase differs from `fgo`."""

from collections.abc import Callable
from typing import Any

from benchmarks import rival_triggers as rivals
from benchmarks.methods.method import KNOWS_T, Method
from benchmarks.methods.three_phases import raw, target_acquisition
from benchmarks.tasks.task import Task

# Steps that stand for the sources' epoch: a run of theirs has about as many epochs as one of
# these tasks has windows.
WINDOW = 20


def _both(make: Callable[[], Any], probe: Any = None) -> dict[str, Any]:
    return {"triggers": {"acquisition": make(), "reask": make()}, "probe": probe}


def _fractions(task: Task) -> dict[str, Any]:
    first, second = rivals.at_steps(task.num_steps // 4, task.num_steps // 2)
    return {"triggers": {"acquisition": first, "reask": second}}


def _deadlines(task: Task) -> dict[str, Any]:
    # Unlike with fractions, the decay too knows where it must end.
    return {**_fractions(task), "total_steps": task.num_steps}


_SASA_PLUS = {"tolerance": None, "confidence": 0.95, "every": WINDOW}
_PARTS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "sasa": lambda _: _both(lambda: rivals.stationary(every=WINDOW), rivals.norm_drift()),
    "sasa_plus": lambda _: _both(lambda: rivals.stationary(**_SASA_PLUS), rivals.norm_drift()),
    "plateau": lambda _: _both(lambda: rivals.plateau_of_means(window=WINDOW)),
    "weight_norm": lambda _: _both(rivals.bounced, rivals.weight_norm(WINDOW)),
    "norms_at_rest": lambda _: _both(rivals.norms_at_rest, rivals.weight_norm(WINDOW)),
    "inflection": lambda _: _both(lambda: rivals.inflected(every=WINDOW), rivals.weight_norm()),
    # The source's tolerance grows by the drop's factor, up to one degree.
    "angle": lambda _: {
        "probe": rivals.angular_velocity(every=WINDOW),
        "triggers": {"acquisition": rivals.saturated(0.5), "reask": rivals.saturated(1.0)},
    },
    "fractions": _fractions,
    "deadlines": _deadlines,
}


def _rival(name: str, parts: Callable[[Task], dict[str, Any]]):
    def triggered(protocol):
        return lambda task, hp: protocol(task, hp, **parts(task))

    note = KNOWS_T if parts in (_fractions, _deadlines) else ""
    fields = {"natural": True, "phased": True, "cadence": 10, "note": note, "by_request": True}
    averaged = f"fgo_by_{name}_averaged"
    return (
        Method(f"fgo_by_{name}", triggered(raw), **fields),
        Method(averaged, triggered(target_acquisition), weights="averaged", **fields),
    )


METHODS = tuple(method for name, parts in _PARTS.items() for method in _rival(name, parts))
