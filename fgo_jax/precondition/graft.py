"""The length of one transformation's updates, the direction of another's."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.trees import log_norm_ratio, sum_squares
from fgo_jax.precondition.shared.preconditioner import Preconditioner


class GraftState(NamedTuple):
    """State of `graft`."""

    graft_step: jax.Array  # shape=(), dtype=jnp.int32.
    magnitude_state: Any
    direction_state: Any


def graft(
    magnitude: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    weight: optax.ScalarOrSchedule = 1.0,
    *,
    global_norm: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Each tensor's update in one transformation's direction, as long as another's.

    With M and D the updates of `magnitude` and `direction` for the same gradient, per tensor

        update = D (||M|| / ||D||)^w,   of norm ||M||^w ||D||^(1 - w),

    w the weight: 1 takes the whole length from M, 0 gives D bit for bit, and a schedule from 1 to
    0 fades the graft out, log-linearly between the two norms:

        graft(adam, fisher, optax.linear_schedule(1.0, 0.0, 200))

    A learning rate tuned for `magnitude` then serves `direction`, tensor by tensor; where a
    preconditioner learns its own scale, the graft need not stay. Both see raw gradients, all extra
    arguments and the parameters; both states are held, and both go on at any weight.

    A tensor whose M is zero gets a zero update while w > 0, and one whose D is zero always. Where
    the norm of M or an entry of D is not finite, the update is zero there; what a non-finite
    gradient does to the statistics is up to the two transformations.

    Args:
      magnitude: gives the norms; without a learning rate, or both with one.
      direction: gives the directions.
      weight: a number in [0, 1], or a schedule of the steps to such numbers.
      global_norm: whether one ratio, of the norms of the whole trees, scales all tensors.

    Returns:
      A gradient transformation in the dtypes of the gradients; where `direction` is a
      `Preconditioner`, so is it, with the same metric.

    Raises:
      ValueError: a weight outside of [0, 1].

    >>> import jax.numpy as jnp, optax
    >>> transform = graft(optax.identity(), optax.scale_by_sign())
    >>> grads = {"w": jnp.array([3.0, 4.0])}
    >>> updates, _ = transform.update(grads, transform.init(grads))
    >>> [round(float(u), 4) for u in updates["w"]]  # of norm 5, along (1, 1)
    [3.5355, 3.5355]

    Source: Agarwal et al., "Disentangling adaptive gradient methods from learning rates", 2020
    (arXiv 2002.11803); Eschenhagen et al., 2025 (arXiv 2506.03595), on when to leave it.
    """
    if not callable(weight):
        _checks.unit("weight", weight)
    _checks.static("global_norm", global_norm)
    length = optax.with_extra_args_support(magnitude)
    course = optax.with_extra_args_support(direction)

    def init(params):
        return GraftState(
            graft_step=jnp.zeros([], jnp.int32),
            magnitude_state=length.init(params),
            direction_state=course.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        wanted, magnitude_state = length.update(
            updates, state.magnitude_state, params, **extra_args
        )
        given, direction_state = course.update(updates, state.direction_state, params, **extra_args)
        w = weight(state.graft_step) if callable(weight) else weight
        w = jnp.asarray(w, jnp.float32)

        def factor(wanted, given):
            ratio = log_norm_ratio(wanted, given)
            known = jnp.isfinite(ratio)
            scale = jnp.exp(w * jnp.where(known, ratio, 0.0))
            return jnp.where(w > 0, jnp.where(known & (sum_squares(wanted) > 0), scale, 0.0), 1.0)

        def apply(scale, d, g):
            d = jnp.where(jnp.isfinite(d), d, jnp.zeros_like(d))
            return (d.astype(jnp.float32) * scale).astype(g.dtype)

        if global_norm:
            scale = factor(wanted, given)
            new = jax.tree.map(lambda d, g: apply(scale, d, g), given, updates)
        else:
            new = jax.tree.map(lambda m, d, g: apply(factor(m, d), d, g), wanted, given, updates)
        state = GraftState(
            graft_step=jnp.asarray(optax.safe_increment(state.graft_step)),
            magnitude_state=optax.tree.cast_like(magnitude_state, state.magnitude_state),
            direction_state=optax.tree.cast_like(direction_state, state.direction_state),
        )
        return new, state

    metric = getattr(direction, "metric", None)
    if metric is None:
        return optax.GradientTransformationExtraArgs(init, update)
    return Preconditioner(init, update, lambda grads, state: metric(grads, state.direction_state))
