"""An anytime average of the weights, whose window grows with time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.devices import again
from fgo_jax.linalg.fitting import check_fits
from fgo_jax.linalg.mesh import on_mesh
from fgo_jax.linalg.trees import wide
from fgo_jax.smoothing import growing_mean


class AverageWeightsState(NamedTuple):
    """Average of the parameters at which the updates so far were computed."""

    averaged_steps: jax.Array  # [], int32
    window: jax.Array  # [], float32; c
    average: Any  # f32 (or wider) or the dtype asked for, shaped like the parameters


def average_init(params: Any, window: Any, dtype: Any = None) -> AverageWeightsState:
    """An average of no parameters yet."""
    return AverageWeightsState(
        averaged_steps=jnp.zeros([], jnp.int32),
        window=jnp.asarray(window, jnp.float32),
        average=growing_mean.zeros(params, dtype),
    )


def average_update(
    state: AverageWeightsState, params: Any, window: Any, taken: Any = True
) -> AverageWeightsState:
    """Adds the parameters to the average if the step is `taken`."""
    # The constructor's window decides. The state keeps a copy only for eval_params.
    state = state._replace(window=again(window, state.window))
    steps = state.averaged_steps
    return state._replace(
        averaged_steps=jnp.where(taken, optax.safe_increment(steps), steps),
        average=_moved(state, params, taken),
    )


def _moved(state: AverageWeightsState, params: Any, taken: Any = True) -> Any:
    return growing_mean.moved(state.average, params, state.window, state.averaged_steps, taken)


def average_weights(window: float = 0.1) -> optax.GradientTransformationExtraArgs:
    r"""Keeps a running average of the parameters; the updates pass unchanged.

    .. math:: \bar\theta \leftarrow \bar\theta + \frac{\theta - \bar\theta}{c\,t + 1}

    with t parameters averaged so far. The weight of step s is proportional to
    :math:`s^{1/c - 1}`. So the average covers a constant share, about c, of the steps taken,
    at any moment and without a horizon.

    Args:
      window: c, in [0, 1]: a share of the steps so far, not a decay. 0 keeps a copy of the last
        parameters, 1 the mean over all of training.

    Returns:
      A gradient transformation; :func:`fgo_jax.eval_params` reads the average. State: four
      bytes per parameter.

    Raises:
      ValueError: for a window outside [0, 1]; in ``update``, without parameters.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> tx = optax.chain(optax.sgd(0.1), fgo.average_weights(0.1))
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params)
      >>> fgo.eval_params(state, params)["w"].shape
      (2,)

    Source: Shamir and Zhang (2013), on polynomial-decay averaging.
    """
    _checks.unit("window", window)

    def init(params: Any) -> AverageWeightsState:
        return average_init(params, window)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, AverageWeightsState]:
        del extra
        if params is None:
            raise ValueError(
                "average_weights averages the parameters: call update(grads, state, params)."
            )
        check_fits("parameter", params, "the state's average of the weights", state.average)
        return updates, average_update(state, params, window)

    return optax.GradientTransformationExtraArgs(on_mesh(init), update)


def average_point(state: AverageWeightsState) -> Callable[[Any, Any], Any]:
    """`(average, parameters) -> average` of one leaf, with the present parameters in it."""

    def point(average: Any, part: Any) -> Any:
        return _moved(state._replace(average=wide(average)), part)

    return point
