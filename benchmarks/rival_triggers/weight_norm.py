"""ABEL and CPR: the squared norm of the weights bounces, or its growth begins to slow."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.rival_triggers.readings import exact
from fgo_jax import _checks
from fgo_jax.linalg import trees
from fgo_jax.probes.probe import Probe, ProbeInputs
from fgo_jax.triggers import Observation, Trigger
from fgo_jax.triggers.trigger import condition


class WeightNormState(NamedTuple):
    evaluations: jax.Array  # [], int32
    square: jax.Array  # [], float32


def weight_norm(every: int = 1) -> Probe:
    """Measures ``weight_norm_square``, the sum of squares of all parameters.

    Args:
      every: steps from one measurement to the next.
    """
    _checks.integer("every", every)

    def init(params: Any) -> WeightNormState:
        del params
        return WeightNormState(jnp.zeros([], jnp.int32), jnp.full([], jnp.nan, jnp.float32))

    def measure(inputs: ProbeInputs, state: WeightNormState) -> WeightNormState:
        return WeightNormState(state.evaluations + 1, trees.sum_squares(inputs.params))

    return Probe(
        signals=("weight_norm_square",),
        init=init,
        due=lambda state, step: step % every == 0,
        measure=measure,
        read=lambda state: exact(weight_norm_square=state.square),
        requires=("params",),
    )


class BouncedState(NamedTuple):
    previous: jax.Array  # [], float32; the value before, NaN at first
    change: jax.Array  # [], float32; the increment before, NaN at first
    turns: jax.Array  # [], int32


def bounced(signal: str = "weight_norm_square") -> Trigger:
    r"""Holds from the second turn of a signal on.

    A turn is a change of sign of its increment between successive measurements. In
    ABEL's setting, where L2 regularisation first shrinks the weights, the first turn is
    the minimum that the norm bounces off, and the second comes when its new growth has
    slowed down so far that noise decides the sign. Where the norm only grows, as it does
    without regularisation, nothing ever turns and the trigger never holds. The source's
    last decay at 85 % of the training time, which needs a horizon, is left out.

    Args:
      signal: measured once an epoch in the source.

    Source: Lewkowycz (2021), algorithm 1.
    """

    def init() -> BouncedState:
        return BouncedState(
            previous=jnp.full([], jnp.nan, jnp.float32),
            change=jnp.full([], jnp.nan, jnp.float32),
            turns=jnp.zeros([], jnp.int32),
        )

    def judge(observation: Observation, state: BouncedState):
        value, _, fresh = observation.signals[signal]
        change = value - state.previous
        turn = change * state.change < 0  # False where one of them is still NaN
        turns = state.turns + turn.astype(jnp.int32)
        holds = turns >= 2
        state = BouncedState(value, change, turns)
        return fresh & jnp.isfinite(value), holds, ~holds, state

    return condition(f"bounced({signal})", init, judge, signals=(signal,))


class InflectedState(NamedTuple):
    smooth: jax.Array  # [], float32; exponential moving average, NaN at first
    pending: jax.Array  # [], int32; measurements since the last look
    looks: jax.Array  # [3], float32; the average at the last looks, the latest last
    curvature: jax.Array  # [], float32; second difference at the last look, NaN at first
    passed: jax.Array  # [], bool; an inflection was seen


def inflected(
    signal: str = "weight_norm_square", smoothing: float = 0.95, every: int = 20
) -> Trigger:
    r"""Holds from the first inflection of a smoothed signal on.

    With the moving average R at looks k = 1, 2, ..., ``every`` measurements apart, an
    inflection is where :math:`R_k - 2 R_{k-1} + R_{k-2}` turns from positive to negative:
    the growth of the weights begins to slow. The source looks at each weight matrix and
    sets a bound on it there; here one norm of all weights decides for the whole model.

    Args:
      signal: measured at every step.
      smoothing: of the moving average, per measurement; the source's is 0.99.
      every: measurements from one look to the next; the source's 200 are for runs a
        hundred times as long.

    Source: Franke et al. (2023), Constrained Parameter Regularization.
    """
    _checks.fraction("smoothing", smoothing)
    _checks.integer("every", every)

    def init() -> InflectedState:
        return InflectedState(
            smooth=jnp.full([], jnp.nan, jnp.float32),
            pending=jnp.zeros([], jnp.int32),
            looks=jnp.full([3], jnp.nan, jnp.float32),
            curvature=jnp.full([], jnp.nan, jnp.float32),
            passed=jnp.zeros([], jnp.bool_),
        )

    def judge(observation: Observation, state: InflectedState):
        value, _, fresh = observation.signals[signal]
        smooth = state.smooth + (1.0 - smoothing) * (value - state.smooth)
        smooth = jnp.where(jnp.isnan(state.smooth), value, smooth)
        pending = state.pending + 1
        look = pending == every
        looks = jnp.where(look, jnp.append(state.looks[1:], smooth), state.looks)
        # Of two differences: the values are large and close to each other.
        second = (looks[2] - looks[1]) - (looks[1] - looks[0])
        curvature = jnp.where(look, second, state.curvature)
        passed = state.passed | (look & (state.curvature > 0) & (second < 0))
        state = InflectedState(smooth, jnp.where(look, 0, pending), looks, curvature, passed)
        return fresh & jnp.isfinite(value), passed, ~passed, state

    return condition(f"inflected({signal})", init, judge, signals=(signal,))
