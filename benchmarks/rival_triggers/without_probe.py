"""Without a probe: times that are given, and reduce on plateau, which reads the training loss."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.triggers import Observation, Trigger, after, condition


class PlateauState(NamedTuple):
    best: jax.Array  # [], float32; of the windows' means
    total: jax.Array  # [], float32; over the window that is filling
    pending: jax.Array  # [], int32; measurements in it
    bad: jax.Array  # [], int32; windows in a row without an improvement


def plateau_of_means(window: int = 20, patience: int = 10, rtol: float = 1e-4) -> Trigger:
    """Holds when the mean loss over a window has not improved for ``patience`` windows.

    An improvement is a fall below the best mean so far by more than ``rtol * |best|``, which also
    serves a negative loss. :func:`fgo_jax.triggers.plateau` compares single batches instead.

    Args:
      window: values of the loss (`value=` of the update) in a mean; optax's `accumulation_size`.
      patience: windows; its default and that of ``rtol`` are those of optax and PyTorch.
      rtol: relative margin of an improvement.
    """

    def init() -> PlateauState:
        return PlateauState(
            best=jnp.full([], jnp.inf, jnp.float32), total=jnp.zeros([], jnp.float32),
            pending=jnp.zeros([], jnp.int32), bad=jnp.zeros([], jnp.int32),
        )  # fmt: skip

    def judge(observation: Observation, state: PlateauState):
        value, _, fresh = observation.signals["loss"]
        total, pending = state.total + value, state.pending + 1
        closes, mean = pending == window, total / window
        margin = rtol * jnp.where(jnp.isfinite(state.best), jnp.abs(state.best), 0.0)
        better = mean < state.best - margin
        bad = jnp.where(closes, jnp.where(better, 0, state.bad + 1), state.bad)
        state = PlateauState(
            best=jnp.where(closes & better, mean, state.best), total=jnp.where(closes, 0.0, total),
            pending=jnp.where(closes, 0, pending), bad=bad,
        )  # fmt: skip
        holds = bad >= patience
        return fresh & jnp.isfinite(value), holds, ~holds, state

    return condition("loss_plateau_of_means", init, judge, signals=("loss",))


def at_steps(first: Any, second: Any) -> tuple[Trigger, Trigger]:
    """Ends acquisition after ``first`` updates and re-ask after ``second``, both from the start.

    Both may be traced, to share a compiled program. The least lengths of the phases still hold.
    """
    # `after(n)` holds at the update that n others precede, which still belongs to the phase.
    return after(first - 1), _until(second - 1)


def _until(step: Any) -> Trigger:
    """Like `after`, but counted from the start of training."""

    def judge(observation: Observation, memory: Any):
        holds = observation.total_step >= step
        return jnp.asarray(True), holds, ~holds, memory

    return condition("until", lambda: (), judge)
