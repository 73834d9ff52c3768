"""What a race needs to know about a contestant, and what its builders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax

from benchmarks.methods import schedules
from benchmarks.tasks.task import Task

Hyperparameters = Mapping[str, Any]
Builder = Callable[[Task, Hyperparameters], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
      name: in tables; siblings that share runs differ in it.
      trajectory: the name under which its runs are stored.
      build: `(task, hyperparameters) -> GradientTransformation`.
      weights: which of the two curves judges the method.
      uses: the sources of `fgo_jax`, as patterns of paths, that its runs depend on.
      shares: further sources of `benchmarks`, as patterns, that its runs depend on.
      phased: its state answers `fgo.telemetry`, and `fgo.eval_params` gives its average.
      note: what a reader of the table must know.
      only: the prefix of the tasks that it takes part in, or several.
      never: the prefix of tasks that it has no place in, or several.
      transform: the transformation that it is about, by its public name; such methods make
        the table of `python -m benchmarks transforms`.
      needs_batch: its update takes `batch=`.
      cadence: one step in so many does extra work, a refresh of factors for instance.
      update_size: of an update at rate one: about one per entry, as Adam's, or as long as
        Newton's step, however long that is. It decides where the grid lies.
      eval_params: `(state, params) -> params`, for a method whose own weights for evaluation
        are not those it trains; they are its raw weights then.
      by_request: it races only where it is asked for by name.
    """

    name: str
    build: Builder
    trajectory: str = ""
    weights: Literal["raw", "averaged"] = "raw"
    uses: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    phased: bool = False
    note: str = ""
    only: str | tuple[str, ...] = ""
    never: str | tuple[str, ...] = ()
    transform: str = ""
    needs_batch: bool = False
    cadence: int = 1
    update_size: Literal["adam", "newton"] = "adam"
    eval_params: Callable[[Any, Any], Any] | None = None
    by_request: bool = False

    def __post_init__(self):
        if not self.trajectory:
            object.__setattr__(self, "trajectory", self.name)

    def enters(self, task: Task) -> bool:
        return task.name.startswith(self.only) and not task.name.startswith(self.never)


def pair(name: str, **fields) -> tuple[Method, Method]:
    """A method judged by its raw weights and its sibling judged by the average."""
    raw = Method(name=name, **fields)
    averaged = dataclasses.replace(
        raw, name=f"{name}_averaged", trajectory=name, weights="averaged", transform=""
    )
    return raw, averaged


def descend(
    direction: optax.GradientTransformation, task: Task, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Steps along `direction` at the rate of `schedule`, with the task's weight decay at that rate.

    A builder that does not end in this hands `task.weight_decay` on itself.
    """
    decay = [optax.add_decayed_weights(task.weight_decay)] if task.weight_decay else []
    return optax.chain(direction, *decay, optax.scale_by_learning_rate(schedule))


def alone(transform: Callable[[Task], optax.GradientTransformation], schedule_of=None) -> Builder:
    """A transformation by itself, at the rate of `schedule_of(task, hp)`; constant if None."""

    def build(task, hp):
        return descend(transform(task), task, (schedule_of or constant_schedule)(task, hp))

    return build


def constant_schedule(task, hp):
    return schedules.constant(hp["learning_rate"], task.warmup_steps)


def two_step_schedule(task, hp):
    switch = hp["switch_fraction"] * task.num_steps
    return schedules.two_step(hp["learning_rate"], task.warmup_steps, switch, hp["cut"])


def cosine_schedule(task, hp):
    return schedules.cosine(hp["learning_rate"], task.warmup_steps, task.num_steps)


def stable_linear_schedule(task, hp):
    return schedules.warmup_stable_decay(
        hp["learning_rate"], task.warmup_steps, task.num_steps, "linear"
    )


def stable_1_minus_sqrt_schedule(task, hp):
    return schedules.warmup_stable_decay(
        hp["learning_rate"], task.warmup_steps, task.num_steps, "1-sqrt"
    )


def one_over_t_schedule(task, hp):
    return schedules.power(hp["learning_rate"], task.warmup_steps, hp["t0"], 1.0)


def one_over_sqrt_t_schedule(task, hp):
    """rate * sqrt(W / t) from the end of the warm-up, W steps long, on."""
    return schedules.power(hp["learning_rate"], task.warmup_steps, task.warmup_steps, 0.5)


def kronecker_fisher(task: Task):
    """The refinement transform of a task."""
    import fgo_jax as fgo

    if not task.name.startswith("quadratic"):
        return fgo.scale_by_kronecker_fisher()
    # The bowl's only parameter is a vector, which gets no factor by default; and what it is about
    # is the natural gradient itself, not Adam in its eigenbasis. A hundred dimensions can afford a
    # new basis at every step.
    return fgo.scale_by_kronecker_fisher(
        vector_factors=True,
        centred=True,
        power=1.0,
        factor_decay=0.99,
        refresh_every=1,
    )


KNOWS_T = "knows T"
# The tasks on which single transformations are compared.
TRANSFORM_TASKS = ("char_gpt", "digits_autoencoder")


def sources(*names: str) -> tuple[str, ...]:
    """What a run depends on that uses these transforms of `fgo_jax.precondition`."""
    shared = ("_checks.py", "precondition/_[!_]*.py", "precondition/preconditioner.py")
    return (*shared, *(f"precondition/{name}.py" for name in names))
