"""Switch times that are given, in steps or as shares of a known horizon."""

from typing import Any

import jax.numpy as jnp

from fgo_jax.triggers import Observation, Trigger, after, condition


def at_steps(first: Any, second: Any) -> tuple[Trigger, Trigger]:
    """Ends acquisition after ``first`` updates and re-ask after ``second``, both from the start.

    Both may be traced, so that all times of a grid share one compiled program. The least
    lengths of the phases still hold.
    """
    # `after(n)` holds at the update that n others precede, which still belongs to the phase.
    return after(first - 1), _until(second - 1)


def _until(step: Any) -> Trigger:
    """Like `after`, but counted from the start of training."""

    def judge(observation: Observation, memory: Any):
        holds = observation.total_step >= step
        return jnp.asarray(True), holds, ~holds, memory

    return condition("until", lambda: (), judge)


def at_shares(num_steps: int, first: float, second: float) -> tuple[Trigger, Trigger]:
    """:func:`at_steps` at shares of the horizon."""
    if not 0.0 < first < second <= 1.0:
        raise ValueError(f"shares must rise within (0, 1], got {first!r} and {second!r}.")
    return at_steps(round(first * num_steps), round(second * num_steps))
