"""The contestants: how each is built from its hyperparameters, and which weights it is judged by.

Every trajectory is evaluated at its raw and at its averaged weights, so a method and its
`_averaged` sibling are two readings of the same runs. `fgo_jax` is imported only by the
methods that use it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optax

from benchmarks import schedules
from benchmarks.tasks.task import Task

Hyperparameters = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
      name: in tables; siblings that share runs differ in it.
      trajectory: the name under which its runs are stored.
      build: `(task, hyperparameters) -> GradientTransformation`.
      weights: which of the two curves judges the method.
      uses: the sources of `fgo_jax`, as patterns of paths, that its runs depend on.
      phased: its state answers `fgo.telemetry`, and `fgo.eval_params` gives its average.
      note: what a reader of the table must know.
      only: the prefix of the tasks that it takes part in.
    """

    name: str
    build: Callable[[Task, Hyperparameters], optax.GradientTransformation]
    trajectory: str = ""
    weights: Literal["raw", "averaged"] = "raw"
    uses: tuple[str, ...] = ()
    phased: bool = False
    note: str = ""
    only: str = ""

    def __post_init__(self):
        if not self.trajectory:
            object.__setattr__(self, "trajectory", self.name)

    def enters(self, task: Task) -> bool:
        return task.name.startswith(self.only)


def _adam(schedule):
    return optax.adam(schedule)


def _refinement(task: Task):
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


def _constant(task, hp):
    return _adam(schedules.constant(hp["learning_rate"], task.warmup_steps))


def _two_step_schedule(task, hp):
    switch = hp["switch_fraction"] * task.num_steps
    return schedules.two_step(hp["learning_rate"], task.warmup_steps, switch, hp["cut"])


def _two_step(task, hp):
    return _adam(_two_step_schedule(task, hp))


def _cosine(task, hp):
    return _adam(schedules.cosine(hp["learning_rate"], task.warmup_steps, task.num_steps))


def _sgd_momentum(task, hp):
    return optax.sgd(schedules.constant(hp["learning_rate"], task.warmup_steps), momentum=0.9)


def _natural(schedule_of):
    """The refinement transform alone, at the rate of `schedule_of(task, hp)`."""

    def build(task, hp):
        rate = optax.scale_by_learning_rate(schedule_of(task, hp))
        return optax.chain(_refinement(task), rate)

    return build


def _constant_schedule(task, hp):
    return schedules.constant(hp["learning_rate"], task.warmup_steps)


def _one_over_t_schedule(task, hp):
    return schedules.power(hp["learning_rate"], task.warmup_steps, hp["t0"], 1.0)


def _one_over_sqrt_t_schedule(task, hp):
    """rate * sqrt(W / t) from the end of the warm-up, W steps long, on."""
    return schedules.power(hp["learning_rate"], task.warmup_steps, task.warmup_steps, 0.5)


def _fgo(task, hp):
    import fgo_jax as fgo

    return fgo.target_acquisition(
        warmup_steps=task.warmup_steps,
        refinement=_refinement(task),
        average_weights=0.1,
        **hp,
    )


def _pair(name: str, **fields) -> tuple[Method, Method]:
    """A method judged by its raw weights and its sibling judged by the average."""
    raw = Method(name=name, **fields)
    averaged = dataclasses.replace(
        raw, name=f"{name}_averaged", trajectory=name, weights="averaged"
    )
    return raw, averaged


_KNOWS_T = "knows T"
_REFINEMENT = ("_checks.py", "precondition/*.py")
_EVERYTHING = ("**/*.py",)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *_pair("constant", build=_constant),
        Method("two_step", _two_step, note=_KNOWS_T),
        Method("cosine", _cosine, note=_KNOWS_T),
        Method("sgd_momentum", _sgd_momentum, only="quadratic_bowl"),
        *_pair("natural_gradient", build=_natural(_constant_schedule), uses=_REFINEMENT),
        *_pair(
            "natural_gradient_1_over_sqrt_t",
            build=_natural(_one_over_sqrt_t_schedule),
            uses=_REFINEMENT,
        ),
        Method(
            "natural_gradient_1_over_t",
            _natural(_one_over_t_schedule),
            uses=_REFINEMENT,
            only="quadratic_bowl",
        ),
        Method(
            "natural_gradient_two_step",
            _natural(_two_step_schedule),
            uses=_REFINEMENT,
            note=_KNOWS_T,
            only="quadratic_bowl",
        ),
        *_pair("fgo", build=_fgo, uses=_EVERYTHING, phased=True),
    )
}


def get_method(name: str) -> Method:
    if name not in METHODS:
        raise ValueError(f"No method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]


def available(method: Method) -> bool:
    """Whether what the method needs of `fgo_jax` can be imported."""
    if not method.uses:
        return True
    try:
        import fgo_jax as fgo
    except ImportError:
        return False
    needed = ["scale_by_kronecker_fisher"]
    if method.phased:
        needed += ["target_acquisition", "telemetry", "eval_params", "force_phase"]
    return all(hasattr(fgo, name) for name in needed)
