"""Reduce on plateau: the rate falls when the training loss no longer does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.triggers import Observation, Trigger, condition


class PlateauState(NamedTuple):
    best: jax.Array  # [], float32; of the windows' means
    total: jax.Array  # [], float32; over the window that is filling
    pending: jax.Array  # [], int32; measurements in it
    bad: jax.Array  # [], int32; windows in a row without an improvement


def plateau_of_means(window: int = 20, patience: int = 10, rtol: float = 1e-4) -> Trigger:
    """Holds when the mean loss over a window has not improved for ``patience`` windows.

    An improvement is a fall below the best mean so far by more than ``rtol * |best|``: optax's
    `rtol` for a positive loss, whose own test, value < (1 - rtol) best, fails on a negative one.
    The best of :func:`fgo_jax.triggers.plateau` is the lowest single batch; this compares means.

    Args:
      window: values of the loss (`value=` of the update) in a mean; optax's `accumulation_size`.
      patience: windows; 10 and ``rtol`` of 1e-4 are the defaults of optax and PyTorch.
      rtol: relative margin of an improvement.
    """

    def init() -> PlateauState:
        return PlateauState(
            best=jnp.full([], jnp.inf, jnp.float32),
            total=jnp.zeros([], jnp.float32),
            pending=jnp.zeros([], jnp.int32),
            bad=jnp.zeros([], jnp.int32),
        )

    def judge(observation: Observation, state: PlateauState):
        value, _, fresh = observation.signals["loss"]
        total, pending = state.total + value, state.pending + 1
        closes = pending == window
        mean = total / window
        margin = rtol * jnp.where(jnp.isfinite(state.best), jnp.abs(state.best), 0.0)
        better = mean < state.best - margin
        bad = jnp.where(closes, jnp.where(better, 0, state.bad + 1), state.bad)
        state = PlateauState(
            best=jnp.where(closes & better, mean, state.best),
            total=jnp.where(closes, 0.0, total),
            pending=jnp.where(closes, 0, pending),
            bad=bad,
        )
        holds = bad >= patience
        return fresh & jnp.isfinite(value), holds, ~holds, state

    return condition("loss_plateau_of_means", init, judge, signals=("loss",))
