"""The declared tuning grids: the same number of trials for every trajectory."""

from __future__ import annotations

import itertools

from benchmarks.methods import Method
from benchmarks.tasks.task import Task

TUNING_SEEDS = (100, 101, 102)
# The setting with the lowest level on the tuning seeds is lucky there. What it really ends
# with, and hence the target, is measured on these.
TARGET_SEEDS = (110, 111, 112, 113, 114)
RACE_SEEDS = (0, 1, 2, 3, 4)


def _geometric(first: float, factor: float, count: int) -> list[float]:
    # Rounded, because the value is part of a file's name and of a table.
    return [float(f"{first * factor**k:.3g}") for k in range(count)]


def num_trials(task: Task) -> int:
    """The same for every method on a task; the bowl's runs take a second."""
    return 12 if task.name.startswith("quadratic_bowl") else 8


def grid(task: Task, method: Method) -> list[dict[str, float]]:
    """The trials of a method's trajectory, `num_trials` of them."""
    bowl, count = task.name.startswith("quadratic_bowl"), num_trials(task)
    # On the bowl a natural gradient's step has the length of Newton's, not Adam's.
    lowest = 0.1 if method.uses else 0.004
    if method.trajectory.endswith("two_step"):
        # (fraction of T at which the rate is cut, what it is multiplied by)
        switches = ((0.1, 0.1), (0.25, 0.1)) if bowl else ((0.25, 0.2), (0.5, 0.1))
        few = _geometric(3 * lowest, 2.0, 6) if bowl else _geometric(1.4e-3, 2.0, 4)
        trials = [
            {"learning_rate": rate, "switch_fraction": fraction, "cut": cut}
            for rate, (fraction, cut) in itertools.product(few, switches)
        ]
    elif method.trajectory.endswith("1_over_t"):
        few = _geometric(3 * lowest, 2.0, 6)  # it falls fast, so it may begin far higher
        trials = [
            {"learning_rate": rate, "t0": t0} for rate, t0 in itertools.product(few, (50.0, 200.0))
        ]
    else:
        rates = _geometric(lowest, 1.5, count) if bowl else _geometric(7.81e-4, 1.6, count)
        trials = [{"learning_rate": rate} for rate in rates]
    if len(trials) != count:
        raise ValueError(f"{method.name} has {len(trials)} trials; every method gets {count}.")
    return trials


def at_edge(trials: list[dict[str, float]], chosen: dict[str, float]) -> bool:
    """Whether the chosen rate ends its grid, so that a better one may lie beyond."""
    rates = [trial["learning_rate"] for trial in trials]
    return chosen["learning_rate"] in (min(rates), max(rates))
