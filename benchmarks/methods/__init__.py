"""The contestants: how each is built from its hyperparameters, and which weights it is judged by.

Every trajectory is evaluated at its raw and at its averaged weights, so a method and its
`_averaged` sibling are two readings of the same runs.
"""

from benchmarks.methods import (
    baselines,
    changed_parts,
    library_transforms,
    muon,
    natural,
    other_triggers,
    three_phases,
)
from benchmarks.methods.method import TRANSFORM_TASKS, Method
from benchmarks.tasks.task import Task

METHODS: dict[str, Method] = {
    method.name: method
    for module in (baselines, muon, natural, library_transforms, three_phases, other_triggers)
    for method in module.METHODS
}  # fmt: skip
# These take settings that no grid tunes: parts of a study, never of a race.
STUDIED: dict[str, Method] = {method.name: method for method in changed_parts.METHODS}


def contestants(task: Task) -> list[Method]:
    """The methods of a race that names none: neither rival triggers nor single transformations.

    The latter are compared by `transforms`.
    """
    return [
        method
        for method in METHODS.values()
        if method.enters(task) and not method.by_request and method.only != TRANSFORM_TASKS
    ]


__all__ = ["METHODS", "STUDIED", "Method", "contestants"]
