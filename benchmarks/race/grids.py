"""The declared tuning grids: the same number of trials for every trajectory."""

import itertools
from typing import NamedTuple

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


class _Budget(NamedTuple):
    """The same for every method on a task."""

    trials: int
    rates: tuple[float, float] = (0.0, 0.0)  # lowest, factor from rate to rate
    high: float = 0.0  # the lowest rate of laws with a second setting
    is_long: bool = False  # runs take long: one tuning seed, few race seeds


_BUDGETS = {
    "quadratic_bowl": _Budget(12), "digits_vit": _Budget(8, (7.81e-4, 1.6), 1.4e-3),
    "mnist5k_vit": _Budget(8, (3.9e-4, 1.6), 7.8e-4), "char_gpt": _Budget(6, is_long=True),
    "digits_autoencoder": _Budget(6), "modular_addition": _Budget(6, (3.5e-4, 2.0), 7e-4),
    "cifar10_vit": _Budget(4, (1.25e-4, 2.0), 2.5e-4, is_long=True),
}  # fmt: skip
# Of six rates over a decade and a half.
_LOWEST = {"adam": 2e-3, "newton": 2e-2}
# Where a first grid put the best rate at its edge: what its rates are multiplied by.
_SCALES = {"diagonal_fisher": 1 / 8, "low_rank_fisher": 4.0}
_SHIFTED = {
    "digits_autoencoder": {
        **dict.fromkeys(("two_step", "schedule_free", "fgo", "fgo_averaged"), 2.0),
        "natural_gradient_1_over_sqrt_t": 2.0, "natural_gradient_1_over_t": 5.0,
        "natural_gradient_two_step": 5.0, "natural_gradient_cosine": 2.0,
        "natural_gradient_slow_momentum": 2.0,
    },
}  # fmt: skip


def _budget(task: Task) -> _Budget:
    return next(b for name, b in _BUDGETS.items() if task.name.startswith(name))


def num_trials(task: Task) -> int:
    return _budget(task).trials


def tuning_seeds(task: Task) -> tuple[int, ...]:
    return TUNING_SEEDS[:1] if _budget(task).is_long else TUNING_SEEDS


def race_seeds(task: Task, method: Method) -> tuple[int, ...]:
    """All for the methods in the claim's tables, whose medians decide; else the first few."""
    decides = method.name in CLAIM_ROWS and not method.by_request
    return RACE_SEEDS if decides and not _budget(task).is_long else FEW_RACE_SEEDS


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
    lowest, _ = _start(task, method)
    if task.name.startswith("quadratic_bowl"):
        first, factor = 3 * lowest, 2.0
    elif task.name in TRANSFORM_TASKS:
        first, factor = 2 * lowest, 2.5
    else:
        first, factor = _budget(task).high, 2.0
    return _geometric(first, factor, num_trials(task) // 2)


def _start(task: Task, method: Method) -> tuple[float, float]:
    """The lowest rate and the factor from rate to rate."""
    if task.name.startswith("quadratic_bowl"):
        # A natural gradient's step there has the length of Newton's, not Adam's.
        return 0.1 if method.natural else 0.004, 1.5
    if task.name in TRANSFORM_TASKS:
        scales = {**_SCALES, **_SHIFTED.get(task.name, {})}
        return _LOWEST[method.update_size] * scales.get(method.trajectory, 1.0), 2.0
    return _budget(task).rates


def _geometric(first: float, factor: float, count: int) -> list[float]:
    return [_rounded(first * factor**k) for k in range(count)]


def _rounded(rate: float) -> float:
    # The value is part of a run's key and of a table.
    return float(f"{rate:.3g}")


def at_edge(trials: list[dict[str, float]], chosen: dict[str, float]) -> bool:
    """Whether any chosen setting ends its grid, so that a better one may lie beyond."""
    tried = {name: [trial[name] for trial in trials] for name in chosen}
    return any(value in (min(tried[name]), max(tried[name])) for name, value in chosen.items())
