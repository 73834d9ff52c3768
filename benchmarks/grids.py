"""The declared tuning grids: the same number of trials for every trajectory."""

from __future__ import annotations

import itertools

from benchmarks.methods import Method
from benchmarks.tasks.task import Task

TRIALS = 12
TUNING_SEEDS = (100, 101)
RACE_SEEDS = (0, 1, 2, 3, 4)

_SWITCHES = ((0.25, 0.2), (0.4, 0.1), (0.6, 0.1))  # (fraction of T, cut)


def _geometric(first: float, factor: float, count: int) -> list[float]:
    # Rounded, because the value is part of a file's name and of a table.
    return [float(f"{first * factor**k:.3g}") for k in range(count)]


def _rates(task: Task, method: Method, count: int) -> list[float]:
    """`count` rates over the range in which the method's best one was ever seen."""
    bowl = task.name.startswith("quadratic_bowl")
    root = 2**0.5
    if count == TRIALS:
        # Adam, FGO and the natural gradient prefer rates of one order on either task.
        return _geometric(2.0**-9, 2.0, count) if bowl else _geometric(7e-4, root, count)
    if count == 6:
        return _geometric(2.0**-6, 2.0, count) if bowl else _geometric(1e-3, 2.0, count)
    return _geometric(2.0**-5, 2.0, count) if bowl else _geometric(1.4e-3, 2.0, count)


def grid(task: Task, method: Method) -> list[dict[str, float]]:
    """The trials of a method's trajectory, `TRIALS` of them."""
    if method.trajectory.endswith("two_step"):
        trials = [
            {"learning_rate": rate, "switch_fraction": fraction, "cut": cut}
            for rate, (fraction, cut) in itertools.product(_rates(task, method, 4), _SWITCHES)
        ]
    elif method.trajectory.endswith("1_over_t"):
        trials = [
            {"learning_rate": rate, "t0": t0}
            for rate, t0 in itertools.product(_rates(task, method, 6), (20.0, 100.0))
        ]
    else:
        trials = [{"learning_rate": rate} for rate in _rates(task, method, TRIALS)]
    if len(trials) != TRIALS:
        raise ValueError(f"{method.name} has {len(trials)} trials; every method gets {TRIALS}.")
    return trials


def at_edge(trials: list[dict[str, float]], chosen: dict[str, float]) -> bool:
    """Whether the chosen rate ends its grid, so that a better one may lie beyond."""
    rates = [trial["learning_rate"] for trial in trials]
    return chosen["learning_rate"] in (min(rates), max(rates))
