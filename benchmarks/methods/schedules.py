"""Learning rates as functions of the step, all behind the task's linear warm-up.

Every builder takes `(task, hyperparameters)`. Rates, cuts and lengths may be traced arrays, so
the trials of a grid share one compiled program.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from benchmarks.tasks.task import Task

Hyperparameters = Mapping[str, Any]
DECAY = 0.2  # of the horizon: the decay of warm-up, stable, decay


def _warm(task: Task, hp: Hyperparameters, shape: Callable[[Any], Any]) -> optax.Schedule:
    """The learning rate times `shape`, behind the warm-up."""

    def schedule(count):
        rise = jnp.minimum(1.0, (count + 1) / max(task.warmup_steps, 1))
        return hp["learning_rate"] * rise * shape(count)

    return schedule


def constant(task: Task, hp: Hyperparameters) -> optax.Schedule:
    return _warm(task, hp, lambda count: 1.0)


def two_step(task: Task, hp: Hyperparameters) -> optax.Schedule:
    """The rate is multiplied by `cut` at a fraction of the horizon."""
    switch = hp["switch_fraction"] * task.num_steps
    return _warm(task, hp, lambda count: jnp.where(count < switch, 1.0, hp["cut"]))


def cosine(task: Task, hp: Hyperparameters) -> optax.Schedule:
    """Half a cosine from the end of the warm-up to zero at the horizon."""

    def shape(count):
        progress = (count - task.warmup_steps) / max(task.num_steps - task.warmup_steps, 1)
        return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))

    return _warm(task, hp, shape)


def one_over_t(task: Task, hp: Hyperparameters) -> optax.Schedule:
    """1 / (1 + (t - W) / t0) after a warm-up of W steps."""
    return _power(task, hp, hp["t0"], 1.0)


def one_over_sqrt_t(task: Task, hp: Hyperparameters) -> optax.Schedule:
    """sqrt(W / t) after a warm-up of W steps."""
    return _power(task, hp, task.warmup_steps, 0.5)


def _power(task: Task, hp: Hyperparameters, scale, exponent: float) -> optax.Schedule:
    def shape(count):
        return (1 + jnp.maximum(count - task.warmup_steps, 0) / scale) ** -exponent

    return _warm(task, hp, shape)


def wsd_linear(task: Task, hp: Hyperparameters) -> optax.Schedule:
    """Constant until the last fifth of the horizon, then linearly down to zero."""
    return _stable_decay(task, hp, lambda progress: progress)


def wsd_1_minus_sqrt(task: Task, hp: Hyperparameters) -> optax.Schedule:
    """As `wsd_linear`, by 1 - sqrt(s) with s from 0 to 1 (Hägele et al., 2024)."""
    return _stable_decay(task, hp, jnp.sqrt)


def _stable_decay(task: Task, hp: Hyperparameters, fall: Callable[[Any], Any]) -> optax.Schedule:
    length = DECAY * task.num_steps

    def shape(count):
        return 1 - fall(jnp.clip((count - task.num_steps + length) / length, 0.0, 1.0))

    return _warm(task, hp, shape)
