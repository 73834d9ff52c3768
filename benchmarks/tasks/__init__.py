"""The training problems, by name."""

import functools
from collections.abc import Callable
from pathlib import Path

from benchmarks.tasks.char_gpt import char_gpt
from benchmarks.tasks.cifar10_vit import cifar10_vit
from benchmarks.tasks.digits_autoencoder import digits_autoencoder
from benchmarks.tasks.digits_vit import digits_vit
from benchmarks.tasks.mnist5k_vit import mnist5k_vit
from benchmarks.tasks.modular_addition import modular_addition
from benchmarks.tasks.quadratic_bowl import quadratic_bowl
from benchmarks.tasks.task import DataError, Task

TASKS: dict[str, Callable[..., Task]] = {
    "quadratic_bowl": quadratic_bowl,
    "quadratic_bowl_01": functools.partial(quadratic_bowl, "quadratic_bowl_01", 0.01),
    "quadratic_bowl_04": functools.partial(quadratic_bowl, "quadratic_bowl_04", 0.04),
    **{task.__name__: task for task in (
        digits_vit, mnist5k_vit, char_gpt, digits_autoencoder, modular_addition, cifar10_vit,
    )},
}  # fmt: skip
IN_A_FOLDER = ("cifar10_vit",)  # whose data are a folder of the user's


@functools.cache  # equal tasks share compiled programs
def get_task(name: str, data_dir: Path | None = None) -> Task:
    if name not in TASKS:
        raise ValueError(f"No task {name!r}; there are {', '.join(TASKS)}.")
    if data_dir is None:
        return TASKS[name]()
    if name not in IN_A_FOLDER:
        raise ValueError(f"{name} brings its own data: leave --data-dir out.")
    return TASKS[name](data_dir)


__all__ = ["IN_A_FOLDER", "TASKS", "DataError", "Task", "get_task"]
