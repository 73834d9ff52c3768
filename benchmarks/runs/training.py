"""One training run: a compiled scan between evaluations, called once per evaluation."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fgo_jax as fgo
from benchmarks.methods import Method
from benchmarks.tasks.task import Task

AVERAGING = 0.1  # c in avg += (p - avg) / (c t + 1): a window of about t / 10 steps


class Carry(NamedTuple):
    params: Any
    average: Any
    opt_state: Any
    step: jax.Array  # [], int32


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one run left behind; every array has one entry per evaluation."""

    steps: np.ndarray
    raw: np.ndarray  # validation metric at the raw weights, or those of `Method.eval_params`
    averaged: np.ndarray  # and at their running average
    train: np.ndarray  # mean training loss since the evaluation before
    telemetry: dict[str, np.ndarray]
    test: dict[str, dict[str, float]]  # {"raw": ..., "averaged": ...} at the end
    seconds: float  # of wall time, evaluations included and compilation not


def running_average(average, params, step):
    """The anytime average after update number `step` (from 0), whose first value is `params`."""
    weight = 1 / (AVERAGING * step.astype(jnp.float32) + 1)
    return jax.tree.map(lambda a, p: a + weight.astype(p.dtype) * (p - a), average, params)


def train_step(task: Task, tx, data, key, carry: Carry, own_average: bool, needs_batch=False):
    batch = task.batch(data, key, carry.step)
    value, grads = jax.value_and_grad(task.loss)(carry.params, batch)
    extras = {"value": value, "batch": batch} if needs_batch else {"value": value}
    updates, opt_state = tx.update(grads, carry.opt_state, carry.params, **extras)
    params = optax.apply_updates(carry.params, updates)
    average = carry.average if own_average else running_average(carry.average, params, carry.step)
    return Carry(params, average, opt_state, carry.step + 1), value


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The jitted pieces of a run, with the hyperparameters as arguments."""

    start: Any
    segment: Any
    finish: Any

    def lowered(self, names: Sequence[str], data: Any) -> str:
        """The pieces as StableHLO: the arithmetic of a run with all its constants.

        It has no source locations, so lines may move. Of `data` only the shapes matter.
        """
        hyperparameters = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
        key = jax.eval_shape(jax.random.key, 0)
        carry = jax.eval_shape(self.start, hyperparameters, key)
        pieces = (
            self.start.lower(hyperparameters, key),
            self.segment.lower(carry, hyperparameters, data, key),
            self.finish.lower(carry, data),
        )
        return "\n".join(piece.as_text() for piece in pieces)


_programs: dict[tuple[Task, str], Program] = {}


def program_of(task: Task, method: Method) -> Program:
    """One for all methods that share a trajectory."""
    key = (task, method.trajectory)
    if key not in _programs:
        _programs[key] = make_program(task, method)
    return _programs[key]


def make_program(task: Task, method: Method) -> Program:
    def transformation(hyperparameters):
        return optax.with_extra_args_support(method.build(task, hyperparameters))

    def weights(carry):
        own = method.eval_params
        raw = carry.params if own is None else own(carry.opt_state, carry.params)
        phased = method.phased
        averaged = fgo.eval_params(carry.opt_state, carry.params) if phased else carry.average
        return {"raw": raw, "averaged": averaged}

    def telemetry(carry):
        found = fgo.telemetry(carry.opt_state) if method.phased else {}
        return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}

    def start(hyperparameters, key):
        params = task.init(key)
        opt_state = transformation(hyperparameters).init(params)
        # A phased optimizer keeps its own average: a second copy would only cost memory.
        average = () if method.phased else jax.tree.map(jnp.zeros_like, params)
        return Carry(params, average, opt_state, jnp.zeros((), jnp.int32))

    def segment(carry, hyperparameters, data, key):
        tx = transformation(hyperparameters)
        flags = {"own_average": method.phased, "needs_batch": method.needs_batch}
        step = functools.partial(train_step, task, tx, data, key, **flags)
        carry, losses = jax.lax.scan(lambda c, _: step(c), carry, length=task.eval_every)
        record = {name: task.evaluate(data, params) for name, params in weights(carry).items()}
        return carry, {**record, "train": losses.mean(), "telemetry": telemetry(carry)}

    def finish(carry, data):
        return {name: task.test(data, params) for name, params in weights(carry).items()}

    return Program(jax.jit(start), jax.jit(segment, donate_argnums=0), jax.jit(finish))


def train(
    task: Task, method: Method, hyperparameters: Mapping[str, float], seed: int = 0, *,
    progress: Callable[[int], None] = lambda steps: None,
    watch: Callable[[Carry, Mapping[str, Any]], None] = lambda carry, record: None,
) -> Curves:  # fmt: skip
    """Trains once and keeps nothing.

    The seed is that of the task's data, the initial weights and the batches: runs of different
    methods with the same seed see the same ones. `progress` is told the steps of each segment,
    `watch` sees the state after it and what was evaluated there.
    """
    program = program_of(task, method)
    arguments = {name: jnp.float32(value) for name, value in hyperparameters.items()}
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    data, carry = task.data(seed), program.start(arguments, init_key)
    # Compiled before the clock starts; later calls of the same program find it in the cache.
    first = jax.tree.map(jnp.copy, carry)
    jax.block_until_ready(program.segment(first, arguments, data, batch_key))

    records = []
    began = time.perf_counter()
    for _ in range(task.num_evals):
        carry, record = program.segment(carry, arguments, data, batch_key)
        records.append(record)
        watch(carry, record)
        progress(task.eval_every)
    records = jax.device_get(records)
    seconds = time.perf_counter() - began

    stacked = jax.tree.map(lambda *leaves: np.asarray(leaves, np.float64), *records)
    test = jax.device_get(program.finish(carry, data))
    return Curves(
        steps=task.eval_every * np.arange(1, task.num_evals + 1),
        test={name: {k: float(v) for k, v in d.items()} for name, d in test.items()},
        seconds=seconds,
        **stacked,
    )
