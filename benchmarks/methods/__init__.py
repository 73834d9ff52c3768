"""The contestants: how each is built from its hyperparameters, and which weights it is judged by.

Every trajectory is evaluated at its raw and at its averaged weights, so a method and its
`_averaged` sibling are two readings of the same runs. `fgo_jax` is imported only by the
methods that use it.
"""

from __future__ import annotations

from benchmarks.methods import baselines, momentum, muon, natural, schedule_free, switches
from benchmarks.methods import changed_parts as ablation
from benchmarks.methods import library_transforms as transforms
from benchmarks.methods import other_triggers as rivals
from benchmarks.methods import protocol as phases
from benchmarks.methods import reduce_on_plateau as plateau
from benchmarks.methods.method import TRANSFORM_TASKS, Method
from benchmarks.tasks.task import Task

_MODULES = (baselines, plateau, schedule_free, muon, natural, momentum, transforms, phases, rivals)
# Whose methods take settings that no grid tunes: parts of a study, never of a race.
_STUDIES = (switches, ablation)

METHODS: dict[str, Method] = {
    method.name: method for module in _MODULES for method in module.METHODS
}
STUDIED: dict[str, Method] = {
    method.name: method for module in _STUDIES for method in module.METHODS
}


def get_method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"No method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]


def file_of(method: Method) -> str:
    """The file that defines a method: what it shares with others lies in `method.py`."""
    for module in (*_MODULES, *_STUDIES):
        if method in module.METHODS and module.__file__:
            return module.__file__
    raise ValueError(f"{method.name} is none of the methods that are registered.")


def available(method: Method) -> bool:
    """Whether what the method needs of `fgo_jax` can be imported."""
    if not method.uses:
        return True
    try:
        import fgo_jax as fgo
    except ImportError:
        return False
    needed = ["scale_by_kronecker_fisher"]
    if method.phased:
        needed += ["target_acquisition", "telemetry", "eval_params", "force_phase"]
    return all(hasattr(fgo, name) for name in needed)


def contestants(task: Task) -> list[Method]:
    """The methods of a race that names none: neither rival triggers nor single transformations.

    The latter, where they are no more than that, are compared by `transforms`.
    """
    return [
        method
        for method in METHODS.values()
        if method.enters(task) and not method.by_request and method.only != TRANSFORM_TASKS
    ]


__all__ = ["METHODS", "STUDIED", "Method", "available", "contestants", "file_of", "get_method"]
