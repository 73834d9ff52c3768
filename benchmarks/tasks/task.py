"""What a race needs to know about a training problem."""

from __future__ import annotations

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

    Attributes:
      name: how the command line and the results call it.
      num_steps: the horizon T.
      eval_every: steps between evaluations; at most T / 200 in a race.
      warmup_steps: the linear warm-up that every method gets.
      batch_size: examples per step.
      data: `seed -> data`, built once on the host, then resident on the device.
      init: `key -> params`.
      batch: `(data, key, step) -> batch`; the same key and step give the same batch.
      loss: `(params, batch) -> f32 []`, the training objective.
      predict: `(params, batch) -> outputs`, for probes that want the curvature of
        `loss_name` at those outputs.
      loss_name: the loss that `fgo_jax.curvature` knows under this name.
      evaluate: `(data, params) -> f32 []`, the validation metric; less is better.
      test: `(data, params) -> {name: f32 []}` on data that nothing else looks at.
      metric: what `evaluate` measures, for tables and pictures.
      target: a fixed level, or None where the constant rate's final level is the target.
      smoothing: the evaluations in the trailing mean.
      hold: for how long a level must be held to count as reached, as a fraction of T;
        None means to the very end of the run.
      timed_steps: steps of one scan where step times are measured, about half a second of them.
      data_digest: `() -> text`, where the data are not the same on every machine.
      weight_decay: decoupled, of all parameters and scaled by the rate; every method gets it.
      uses: the files of `benchmarks/tasks`, beside its own, that its runs depend on.
    """

    name: str
    num_steps: int
    eval_every: int
    warmup_steps: int
    batch_size: int
    data: Callable[[int], Data]
    init: Callable[[jax.Array], Params]
    batch: Callable[[Data, jax.Array, jax.Array], Batch]
    loss: Callable[[Params, Batch], jax.Array]
    predict: Callable[[Params, Batch], jax.Array]
    loss_name: str
    evaluate: Callable[[Data, Params], jax.Array]
    test: Callable[[Data, Params], dict[str, jax.Array]]
    metric: str
    target: float | None = None
    smoothing: int = 5
    hold: float | None = 0.05
    timed_steps: int = 200
    data_digest: Callable[[], str] | None = None
    weight_decay: float = 0.0
    uses: tuple[str, ...] = ()

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

    def shortened(self, num_steps: int) -> Task:
        """The same task with another horizon, rounded down to whole evaluations."""
        whole = max(num_steps // self.eval_every, 1) * self.eval_every
        timed = min(self.timed_steps, whole)
        return dataclasses.replace(self, num_steps=whole, timed_steps=timed)
