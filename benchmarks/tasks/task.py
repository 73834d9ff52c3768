"""What a race needs to know about a training problem."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Params = Any
Data = Any
Batch = Any


class DataError(Exception):
    """The data of a task are not there or not whole; the message says where to get them."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A training problem as pure functions over arrays.

    What depends on the seed lives in `data`, an argument of the compiled functions and
    never a constant of theirs, so one program serves all seeds.
    """

    name: str  # how the command line and the results call it
    num_steps: int  # the horizon T
    eval_every: int  # steps between evaluations; at most T / 200 in a race
    batch_size: int  # examples per step
    data: Callable[[int], Data]  # of a seed; built once on the host, then resident on the device
    init: Callable[[jax.Array], Params]  # of a key
    # (data, key, step) -> batch; the same key and step give the same batch.
    batch: Callable[[Data, jax.Array, jax.Array], Batch]
    loss: Callable[[Params, Batch], jax.Array]  # f32 [], the training objective
    # (params, batch) -> outputs, for probes that want the curvature of `loss_name` there.
    predict: Callable[[Params, Batch], jax.Array]
    loss_name: str  # of the loss in `fgo_jax.curvature`
    evaluate: Callable[[Data, Params], jax.Array]  # f32 [], the validation metric; less is better
    test: Callable[[Data, Params], dict[str, jax.Array]]  # on data that nothing else looks at
    metric: str  # what `evaluate` measures, for tables and pictures
    warmup_steps: int = 100  # the linear warm-up that every method gets
    target: float | None = None  # a fixed level; None: the constant rate's final level
    smoothing: int = 5  # evaluations in the trailing mean
    # For how long a level must be held to count as reached, as a share of T; None: to the end.
    hold: float | None = 0.05
    timed_steps: int = 200  # of one scan where step times are measured, about half a second
    data_digest: Callable[[], str] | None = None  # where data differ between machines
    weight_decay: float = 0.0  # decoupled, scaled by the rate, of all parameters; for every method

    def __post_init__(self):
        if self.num_steps % self.eval_every:
            raise ValueError(
                f"{self.name}: eval_every={self.eval_every} does not divide "
                f"num_steps={self.num_steps}; the last evaluation would miss the end."
            )

    @property
    def num_evals(self) -> int:
        return self.num_steps // self.eval_every

    @property
    def digest(self) -> str | None:
        """Which data these are; None where they are always the same."""
        return None if self.data_digest is None else self.data_digest()

    def shortened(self, num_steps: int) -> "Task":
        """The same task with another horizon, rounded down to whole evaluations."""
        whole = max(num_steps // self.eval_every, 1) * self.eval_every
        timed = min(self.timed_steps, whole)
        return dataclasses.replace(self, num_steps=whole, timed_steps=timed)
