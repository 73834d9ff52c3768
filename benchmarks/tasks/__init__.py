"""The training problems, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks.tasks.char_gpt import char_gpt
from benchmarks.tasks.digits_autoencoder import digits_autoencoder
from benchmarks.tasks.digits_vit import digits_vit
from benchmarks.tasks.quadratic_bowl import quadratic_bowl
from benchmarks.tasks.task import Task

TASKS: dict[str, Callable[[], Task]] = {
    "quadratic_bowl": quadratic_bowl,
    "quadratic_bowl_01": functools.partial(quadratic_bowl, "quadratic_bowl_01", 0.01),
    "quadratic_bowl_04": functools.partial(quadratic_bowl, "quadratic_bowl_04", 0.04),
    "digits_vit": digits_vit,
    "char_gpt": char_gpt,
    "digits_autoencoder": digits_autoencoder,
}


@functools.cache  # equal tasks share compiled programs
def get_task(name: str) -> Task:
    if name not in TASKS:
        raise ValueError(f"No task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name]()


__all__ = ["TASKS", "Task", "get_task"]
