"""What a race needs to know about a contestant, and what its builders share."""

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
    """A contestant."""

    name: str  # in tables; siblings that share runs differ in it
    build: Builder
    trajectory: str = ""  # the name under which its runs are stored; its own by default
    weights: Literal["raw", "averaged"] = "raw"  # which of the two curves judges it
    natural: bool = False  # on the bowl its step has the length of Newton's
    phased: bool = False  # `fgo.telemetry` reads its state, and `fgo.eval_params` its average
    note: str = ""  # what a reader of the table must know
    only: str | tuple[str, ...] = ""  # prefix of the tasks that it takes part in, or several
    never: str = ""  # prefix of the tasks that it has no place in
    transform: str = ""  # public name; these make the table of `python -m benchmarks transforms`
    needs_batch: bool = False  # its update takes `batch=`
    cadence: int = 1  # one step in so many does extra work, such as a refresh of factors
    # Of an update at rate one: about one per entry, as Adam's, or as long as Newton's step.
    update_size: Literal["adam", "newton"] = "adam"
    # (state, params) -> params: its raw weights, where they are not those that it trains.
    eval_params: Callable[[Any, Any], Any] | None = None
    by_request: bool = False  # it races only where it is asked for by name

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
        vector_factors=True, centred=True, power=1.0, factor_decay=0.99, refresh_every=1
    )
