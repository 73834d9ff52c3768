"""What a race needs to know about a contestant, and what its builders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import optax

import fgo_jax as fgo
from benchmarks.methods import schedules
from benchmarks.methods.schedules import Hyperparameters
from benchmarks.tasks.task import Task

Builder = Callable[[Task, Hyperparameters], optax.GradientTransformation]
KNOWS_T = "knows T"
# The tasks on which single transformations are compared.
TRANSFORM_TASKS = ("char_gpt", "digits_autoencoder")


@dataclasses.dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
      name: in tables; siblings that share runs differ in it.
      trajectory: the name under which its runs are stored.
      build: `(task, hyperparameters) -> GradientTransformation`.
      weights: which of the two curves judges the method.
      natural: follows a natural gradient, whose step on the bowl has the length of Newton's.
      phased: its state answers `fgo.telemetry`, and `fgo.eval_params` gives its average.
      note: what a reader of the table must know.
      only: the prefix of the tasks that it takes part in, or several.
      never: the prefix of tasks that it has no place in.
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
    natural: bool = False
    phased: bool = False
    note: str = ""
    only: str | tuple[str, ...] = ""
    never: str = ""
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
        banned = bool(self.never) and task.name.startswith(self.never)
        return task.name.startswith(self.only) and not banned


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

    A builder that does not end in this passes `task.weight_decay` on itself.
    """
    decay = [optax.add_decayed_weights(task.weight_decay)] if task.weight_decay else []
    return optax.chain(direction, *decay, optax.scale_by_learning_rate(schedule))


def alone(
    transform: Callable[[Task], optax.GradientTransformation], schedule_of=schedules.constant
) -> Builder:
    """A transformation by itself, at the rate of `schedule_of(task, hyperparameters)`."""
    return lambda task, hp: descend(transform(task), task, schedule_of(task, hp))


def kronecker_fisher(task: Task):
    """The refinement transform of a task."""
    if not task.name.startswith("quadratic"):
        return fgo.scale_by_kronecker_fisher()
    # The bowl's only parameter is a vector, which gets no factor by default; and the bowl is
    # about the natural gradient itself, not Adam in its eigenbasis. A hundred dimensions can
    # afford a new basis at every step.
    return fgo.scale_by_kronecker_fisher(
        vector_factors=True,
        centred=True,
        power=1.0,
        factor_decay=0.99,
        refresh_every=1,
    )
