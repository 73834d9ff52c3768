"""The three phases with the triggers of others: only what ends a phase differs from `fgo`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import rival_triggers as rivals
from benchmarks.methods.method import KNOWS_T, Method
from benchmarks.methods.three_phases import raw, target_acquisition
from benchmarks.tasks.task import Task

# Steps that stand for the sources' epoch: a run of theirs has about as many epochs as one of
# these tasks has windows.
WINDOW = 20


def _both(make: Callable[[], Any]) -> dict[str, Any]:
    return {"triggers": {"acquisition": make(), "reask": make()}}


def _sasa(task: Task):
    del task
    return {"probe": rivals.norm_drift(), **_both(lambda: rivals.stationary(every=WINDOW))}


def _sasa_plus(task: Task):
    del task
    trigger = {"tolerance": None, "confidence": 0.95, "every": WINDOW}
    return {"probe": rivals.norm_drift(), **_both(lambda: rivals.stationary(**trigger))}


def _plateau(task: Task):
    del task
    return _both(lambda: rivals.plateau_of_means(window=WINDOW))


def _weight_norm(task: Task):
    del task
    return {"probe": rivals.weight_norm(every=WINDOW), **_both(rivals.bounced)}


def _inflection(task: Task):
    del task
    return {"probe": rivals.weight_norm(), **_both(lambda: rivals.inflected(every=WINDOW))}


def _angle(task: Task):
    del task
    # The source's tolerance grows by the drop's factor, up to one degree.
    return {
        "probe": rivals.angular_velocity(every=WINDOW),
        "triggers": {
            "acquisition": rivals.saturated(tolerance=0.5),
            "reask": rivals.saturated(tolerance=1.0),
        },
    }


def _fractions(task: Task):
    first, second = rivals.at_shares(task.num_steps, 0.25, 0.5)
    return {"triggers": {"acquisition": first, "reask": second}}


def _deadlines(task: Task):
    # Unlike with fractions, the decay too knows where it must end.
    return {**_fractions(task), "total_steps": task.num_steps}


def _rival(name: str, parts: Callable[[Task], dict[str, Any]], note: str = ""):
    def triggered(protocol):
        return lambda task, hp: protocol(task, hp, **parts(task))

    fields = {
        "natural": True,
        "phased": True,
        "cadence": 10,
        "note": note,
        "by_request": True,
    }
    return (
        Method(f"fgo_by_{name}", triggered(raw), **fields),
        Method(
            f"fgo_by_{name}_averaged", triggered(target_acquisition), weights="averaged", **fields
        ),
    )


METHODS = (
    *_rival("sasa", _sasa),
    *_rival("sasa_plus", _sasa_plus),
    *_rival("plateau", _plateau),
    *_rival("weight_norm", _weight_norm),
    *_rival("inflection", _inflection),
    *_rival("angle", _angle),
    *_rival("fractions", _fractions, KNOWS_T),
    *_rival("deadlines", _deadlines, KNOWS_T),
)
