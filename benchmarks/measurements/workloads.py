"""Models whose training steps are timed, and calls of some of their steps."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fgo_jax as fgo
from benchmarks.tasks import get_task
from benchmarks.tasks.cifar10_vit import MODEL
from benchmarks.tasks.supervised import supervised
from benchmarks.tasks.transformers import VisionTransformer


class Workload(NamedTuple):
    """A model at its parameters, with one batch that every step uses."""

    name: str
    params: Any
    batch: Any
    predict: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], jax.Array]
    horizon: int  # steps of a whole run, over which a varying cadence is averaged
    steps: int  # in one timed call
    rounds: int  # of steps that do not measure, enough to see a percent
    firing_rounds: int  # of those that do; their bound is multiplied by a small rate
    repeats: int  # of a call in a round, of which the fastest counts
    phases: bool  # whether the three phases are timed too
    transforms: bool = False  # whether optimizers are timed, and no probes
    brief_batch: Any = None  # for what is added between measurements; None: `batch`

    @property
    def between(self) -> "Workload":
        """As it is timed between measurements."""
        return self if self.brief_batch is None else self._replace(batch=self.brief_batch)


def digits_vit() -> Workload:
    """Its steps are so short that a call from Python would cost as much as half of one.

    That cost grows with the size of the program, so calls of many steps are timed.
    """
    task, key = get_task("digits_vit"), jax.random.key(0)
    batch, params = task.batch(task.data(0), key, jnp.int32(0)), task.init(key)
    given = (task.name, params, batch, task.predict, task.loss)
    return Workload(*given, task.num_steps, 48, 40, 40, 4, True)


def vit_small(
    model: VisionTransformer = MODEL, horizon: int = 10_000, batch_size: int = 16
) -> Workload:
    """ViT-small on synthetic images: time does not depend on what they show.

    The batch is small, so the shares are larger than in practice. Optimizers with their
    refreshes are timed on a larger one, `transforms`, in fewer rounds.
    """
    shape = (batch_size, 32, 32, 3)
    image_key, label_key, init_key = jax.random.split(jax.random.key(0), 3)
    labels = jax.random.randint(label_key, shape[:1], 0, model.classes)
    batch = {"image": jax.random.normal(image_key, shape), "label": labels}
    two = jax.tree.map(lambda rows: rows[:2], batch)  # a probe compares halves of a batch
    task = supervised(dict, model, "image", (1, *shape[1:]))
    given = ("vit_small", task["init"](init_key), batch, task["predict"], task["loss"])
    return Workload(*given, horizon, 1, 300, 8, 1, False, brief_batch=two)


def transforms(model: VisionTransformer = MODEL) -> Workload:
    """In seconds of the processor, for one core: `taskset -c 0 python -m benchmarks overhead`."""
    small = vit_small(model, batch_size=64)
    return small._replace(name="transforms", rounds=5, firing_rounds=2, transforms=True)


_given = jax.custom_vjp(lambda params, batch: batch["loss"])
_given.defvjp(lambda _, batch: (batch["loss"], batch["grads"]), lambda grads, g: (grads, None))


def leaves(count: int) -> Workload:
    """So many leaves of eight shapes, with loss and gradients in the batch: no model takes time."""
    shapes = ((8, 4), (4,), (4, 8), (8,), (4, 4), (8, 8), (6, 4), (6,))
    params = [jnp.full(shapes[i % 8], 0.1, jnp.float32) for i in range(count)]
    given = (f"{count}_leaves", params, {"label": jnp.zeros(1), "loss": jnp.ones([]),
             "grads": params}, lambda *_: None, _given)  # fmt: skip
    return Workload(*given, 10_000, 1, 40 if count < 1000 else 5, 2, 20, False, transforms=True)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "digits_vit": digits_vit, "vit_small": vit_small, "transforms": transforms,
    **{f"{count}_leaves": functools.partial(leaves, count) for count in (100, 400, 2000)},
}  # fmt: skip


def compiled(workload: Workload, tx: Any, carry: Any) -> Any:
    """The program of a call, which several calls may share, and CPU seconds to compile it."""
    tx = optax.with_extra_args_support(tx)

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(workload.loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, batch=batch, grad=grads)
        return optax.apply_updates(params, updates), state

    def steps(carry: Any, batch: Any) -> Any:
        if workload.steps == 1:
            return step(carry, batch)
        return jax.lax.scan(lambda c, _: (step(c, batch), None), carry, length=workload.steps)[0]

    began = time.process_time()
    program = jax.jit(steps, donate_argnums=0).lower(carry, workload.batch).compile()
    return program, time.process_time() - began


class Steps:
    """A call of `workload.steps` steps on a state of its own, which goes on from call to call."""

    def __init__(self, workload: Workload, tx: Any, first: int = 0, program: Any = None):
        """`first` is the number of the first step; `program` one to share, of `compiled`."""
        params = jax.tree.map(jnp.copy, workload.params)
        state = tx.init(params)
        if isinstance(state, fgo.FgoState):
            clock = state.clock._replace(total_step=jnp.int32(first))
            state = state._replace(clock=clock)
        self.carry, self.batch = (params, state), workload.batch
        self.program = compiled(workload, tx, self.carry) if program is None else program

    def __call__(self) -> Any:
        self.carry = self.program[0](self.carry, self.batch)
        return self.carry

    def cost(self) -> dict[str, float]:
        """Bytes per parameter of the state and of what a call needs beside; seconds to compile."""
        used: Any = self.program[0].memory_analysis()
        size = optax.tree.size(self.carry[0])
        return {
            "state_bytes_per_parameter": sum(x.nbytes for x in jax.tree.leaves(self.carry[1]))
            / size,
            "temporary_bytes_per_parameter": used.temp_size_in_bytes / size,
            "compile_cpu_seconds": self.program[1],
        }

    def renew(self) -> None:
        """Moves the state to other memory."""
        self.carry = jax.block_until_ready(jax.tree.map(jnp.copy, self.carry))
