"""The squared norm of the weights bounces (ABEL), begins to slow (CPR), or comes to rest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.rival_triggers.parameter_probe import parameter_probe
from fgo_jax.linalg import sum_squares
from fgo_jax.probes import Probe
from fgo_jax.triggers import Observation, Trigger, condition, stall

_SIGNAL = "weight_norm_square"


class WeightNormState(NamedTuple):
    evaluations: jax.Array  # [], int32
    square: jax.Array  # [], float32


def weight_norm(every: int = 1) -> Probe:
    """Measures ``weight_norm_square``, the sum of squares of all parameters."""

    def init(params: Any) -> WeightNormState:
        del params
        return WeightNormState(jnp.zeros([], jnp.int32), jnp.full([], jnp.nan, jnp.float32))

    def measure(params: Any, state: WeightNormState) -> WeightNormState:
        return WeightNormState(state.evaluations + 1, sum_squares(params))

    return parameter_probe(init, measure, lambda state: {_SIGNAL: state.square}, (_SIGNAL,), every)


class BouncedState(NamedTuple):
    previous: jax.Array  # [], float32; the value before, NaN at first
    change: jax.Array  # [], float32; the increment before, NaN at first
    turns: jax.Array  # [], int32


def bounced() -> Trigger:
    r"""Holds from the second turn of ``weight_norm_square`` on.

    A turn is a change of sign of its increment between successive measurements: first, under L2
    regularisation, the minimum of the norm, then the end of its new growth, where noise decides
    the sign. Without regularisation it never holds.

    Source: Lewkowycz (2021), algorithm 1, which measures once an epoch. Left out: its last decay
    at 85 % of the training time, which needs a horizon.
    """

    def init() -> BouncedState:
        nothing, before = (jnp.full([], jnp.nan, jnp.float32) for _ in range(2))
        return BouncedState(nothing, before, jnp.zeros([], jnp.int32))

    def judge(observation: Observation, state: BouncedState):
        value, _, fresh = observation.signals[_SIGNAL]
        change = value - state.previous
        turn = change * state.change < 0  # False where one of them is still NaN
        turns = state.turns + turn.astype(jnp.int32)
        holds, state = turns >= 2, BouncedState(value, change, turns)
        return fresh & jnp.isfinite(value), holds, ~holds, state

    return condition(f"{_SIGNAL}_bounced", init, judge, signals=(_SIGNAL,))


class InflectedState(NamedTuple):
    smooth: jax.Array  # [], float32; exponential moving average, NaN at first
    pending: jax.Array  # [], int32; measurements since the last look
    looks: jax.Array  # [3], float32; the average at the last looks, the latest last
    curvature: jax.Array  # [], float32; second difference at the last look, NaN at first
    passed: jax.Array  # [], bool; an inflection was seen


def inflected(smoothing: float = 0.95, every: int = 20) -> Trigger:
    r"""Holds from the first inflection of the smoothed ``weight_norm_square`` on.

    With the moving average R at looks k, ``every`` measurements apart, an inflection is where
    :math:`R_k - 2 R_{k-1} + R_{k-2}` turns from positive to negative.

    Args:
      smoothing: of the moving average, per measurement; the source's is 0.99.
      every: the source's 200 measurements are for runs a hundred times as long.

    Source: Franke et al. (2023), Constrained Parameter Regularization, which looks at each weight
    matrix; here one norm of all weights decides for the whole model.
    """

    def init() -> InflectedState:
        return InflectedState(
            smooth=jnp.full([], jnp.nan, jnp.float32), pending=jnp.zeros([], jnp.int32),
            looks=jnp.full([3], jnp.nan, jnp.float32), curvature=jnp.full([], jnp.nan, jnp.float32),
            passed=jnp.zeros([], jnp.bool_),
        )  # fmt: skip

    def judge(observation: Observation, state: InflectedState):
        value, _, fresh = observation.signals[_SIGNAL]
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

    return condition(f"{_SIGNAL}_inflected", init, judge, signals=(_SIGNAL,))


def norms_at_rest(tolerance: float = 0.25) -> Trigger:
    r"""Holds when the slope of ``weight_norm_square`` over log t is within the tolerance of zero.

    A symmetry of the loss leaves the length of some weights free, which settles where weight
    decay balances the steps: Noether's learning dynamics calls that equilibrium. Steps of equal
    length across the weights, without decay, have slope 1.

    Source: Tanaka and Kunin (2021), on the equilibrium. That it should end a phase is our reading.
    """
    return stall(_SIGNAL, tolerance)
