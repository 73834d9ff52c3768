"""The declared tuning grids: the same number of trials for every trajectory."""

from __future__ import annotations

import itertools

from benchmarks.methods import Method
from benchmarks.methods.method import TRANSFORM_TASKS
from benchmarks.race.levels import CLAIM_ROWS
from benchmarks.tasks.task import Task

TUNING_SEEDS = (100, 101, 102)
# The setting with the lowest level on the tuning seeds is lucky there. What it really ends
# with, and hence the target, is measured on these.
TARGET_SEEDS = (110, 111, 112, 113, 114)
# An odd number, so that every median is a run's own.
RACE_SEEDS = tuple(range(15))
# The first of them: for studies, for long runs, and for rivals outside the claim's tables.
FEW_RACE_SEEDS = RACE_SEEDS[:5]

# Where runs are long, every method has fewer trials.
_TRIALS = {
    "quadratic_bowl": 12,
    "digits_vit": 8,
    "mnist5k_vit": 8,
    "char_gpt": 6,
    "digits_autoencoder": 6,
    "modular_addition": 6,
    "cifar10_vit": 4,
}
_FEWER_TUNING_SEEDS = {"char_gpt": 1, "cifar10_vit": 1}
_FEW_RACE_SEEDS_ON = ("char_gpt", "cifar10_vit")
# (lowest rate, factor from rate to rate)
_RATES = {
    "mnist5k_vit": (3.9e-4, 1.6),
    "modular_addition": (3.5e-4, 2.0),
    "cifar10_vit": (1.25e-4, 2.0),
}
# Of six rates over a decade and a half.
_LOWEST = {"adam": 2e-3, "newton": 2e-2}
# Where a first grid put the best rate at its edge: what its rates are multiplied by.
_SCALES = {"diagonal_fisher": 1 / 8, "low_rank_fisher": 4.0}
_SHIFTED = {
    "digits_autoencoder": {
        "two_step": 2.0,
        "schedule_free": 2.0,
        "natural_gradient_1_over_sqrt_t": 2.0,
        "natural_gradient_1_over_t": 5.0,
        "natural_gradient_two_step": 5.0,
        "natural_gradient_cosine": 2.0,
        "natural_gradient_slow_momentum": 2.0,
        "fgo": 2.0,
        "fgo_averaged": 2.0,
    },
}


def num_trials(task: Task) -> int:
    """The same for every method on a task."""
    return next(count for name, count in _TRIALS.items() if task.name.startswith(name))


def tuning_seeds(task: Task) -> tuple[int, ...]:
    """The same for every method on a task."""
    return TUNING_SEEDS[: _FEWER_TUNING_SEEDS.get(task.name)]


def race_seeds(task: Task, method: Method) -> tuple[int, ...]:
    """All for the methods in the claim's tables, whose medians decide; else the first few."""
    decides = method.name in CLAIM_ROWS and not method.by_request
    return RACE_SEEDS if decides and task.name not in _FEW_RACE_SEEDS_ON else FEW_RACE_SEEDS


def grid(task: Task, method: Method) -> list[dict[str, float]]:
    """The trials of a method's trajectory, `num_trials` of them."""
    bowl, count = task.name.startswith("quadratic_bowl"), num_trials(task)
    if method.trajectory.endswith("two_step"):
        # (fraction of T at which the rate is cut, what it is multiplied by)
        switches = ((0.1, 0.1), (0.25, 0.1)) if bowl else ((0.25, 0.2), (0.5, 0.1))
        trials = [
            {"learning_rate": rate, "switch_fraction": fraction, "cut": cut}
            for rate, (fraction, cut) in itertools.product(_high_rates(task, method), switches)
        ]
    elif method.trajectory.endswith("1_over_t"):
        # It falls fast, so it may begin far higher; its length is in warm-ups, not in T.
        rates = [_rounded(rate * (1 if bowl else 2)) for rate in _high_rates(task, method)]
        trials = [
            {"learning_rate": rate, "t0": t0 * task.warmup_steps}
            for rate, t0 in itertools.product(rates, (2.5, 10.0))
        ]
    else:
        first, factor = _start(task, method)
        trials = [{"learning_rate": rate} for rate in _geometric(first, factor, count)]
    if len(trials) != count:
        raise ValueError(f"{method.name} has {len(trials)} trials; every method gets {count}.")
    return trials


def _high_rates(task: Task, method: Method) -> list[float]:
    """Half as many rates, higher and further apart, for laws with a second setting."""
    first, factor = _start(task, method)
    if task.name.startswith("quadratic_bowl"):
        times, factor = 3, 2.0
    elif task.name in TRANSFORM_TASKS:
        times, factor = 2, 2.5
    else:
        first, times, factor = _RATES.get(task.name, (7e-4,))[0], 2, 2.0
    return _geometric(times * first, factor, num_trials(task) // 2)


def _start(task: Task, method: Method) -> tuple[float, float]:
    """The lowest rate and the factor from rate to rate."""
    if task.name.startswith("quadratic_bowl"):
        # A natural gradient's step there has the length of Newton's, not Adam's.
        return 0.1 if method.natural else 0.004, 1.5
    if task.name in TRANSFORM_TASKS:
        scales = {**_SCALES, **_SHIFTED.get(task.name, {})}
        return _LOWEST[method.update_size] * scales.get(method.trajectory, 1.0), 2.0
    return _RATES.get(task.name, (7.81e-4, 1.6))


def _geometric(first: float, factor: float, count: int) -> list[float]:
    return [_rounded(first * factor**k) for k in range(count)]


def _rounded(rate: float) -> float:
    # The value is part of a run's key and of a table.
    return float(f"{rate:.3g}")


def at_edge(trials: list[dict[str, float]], chosen: dict[str, float]) -> bool:
    """Whether the chosen rate ends its grid, so that a better one may lie beyond."""
    rates = [trial["learning_rate"] for trial in trials]
    return chosen["learning_rate"] in (min(rates), max(rates))
