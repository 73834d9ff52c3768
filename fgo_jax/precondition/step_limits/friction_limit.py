"""Shortens an update to the minimum of the local quadratic model along it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.weights import Select
from fgo_jax.linalg.trees import vdot
from fgo_jax.precondition.step_limits.along_update import Limit, Step, limit_updates
from fgo_jax.precondition.step_limits.softmax_radius import softmax_radius


def scale_by_friction_limit(
    predict_fn: Callable[[Any, Any], Any],
    loss: losses.Loss = "softmax_cross_entropy",
    *,
    damping: jax.typing.ArrayLike = 1e-3,
    radius: jax.typing.ArrayLike | None = None,
    weights: Select | None = None,
    every: jax.typing.ArrayLike = 10,
    examples: int | None = None,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens an update to the minimum of the local quadratic model along it.

    Not a direction: it goes last in a chain, after the learning rate and the minus sign: the
    proposed update p is what is added to the parameters. In front of the minus sign it would
    make every update zero.

    For p, the gradient g and the Gauss-Newton matrix (or Fisher) F = J^T H J,

        loss(params + s p) - loss(params)  ~  s g^T p + s^2 (phi(p) + damping ||p||^2) / 2,
        phi(p) = p^T F p,   update = s p,
        s = min(1, -g^T p / (phi(p) + damping ||p||^2)), and 0 where g^T p > 0.

    A step is shortened if the quadratic model says that it overshoots. It is never lengthened. It
    is not taken at all if it leads uphill, as a step of momentum sometimes does. The raw gradient
    comes as `grad=`, as for `optax.scale_by_backtracking_linesearch`.

    The curvature along p, phi(p) / ||p||^2, is measured when and as
    :func:`fgo_jax.clip_by_softmax_radius` measures Delta, and combined with the g^T p and ||p|| of
    each step. Until a measurement succeeds nothing is shortened. With `radius`, the same jvp serves
    both limits, and the shorter step is taken. A leaf of g or p that is not finite does not count.

    Args:
      predict_fn: ``(params, batch) -> outputs``; it picks its inputs from the batch.
      loss: as in :func:`fgo_jax.curvature.ggn`: the name of a loss, which reads no labels, or a
        function ``(outputs, batch) -> losses``, convex in the outputs.
      damping: added to the curvature along p; in the unit of the loss over parameters squared.
      radius: of :func:`fgo_jax.clip_by_softmax_radius`, for logits [..., C]; None for no such
        limit.
      weights: as in :func:`fgo_jax.curvature.ggn`.
      every: steps from one measurement to the next.
      examples: how many leading examples of the batch are measured; None for an eighth of it.
      axis_name: inside `jax.pmap` or `jax.shard_map`, the axis over whose devices
        the curvature is averaged. All of them then take the same step, if their updates are equal.
        Without it `jax.shard_map` raises an error; under `jax.pmap` their steps differ.

    Returns:
      A gradient transformation whose `update` needs `params` and the extra arguments `batch`
      (arrays with the examples along axis 0) and `grad`. `shrinkage` in its state is the last s.
      The state holds a few numbers: 0 bytes per parameter.

    Raises:
      ValueError: for an argument out of its range; at the call, for outputs that the loss cannot
        take and for a batch that is too small, or differs between devices without `axis_name`.
      TypeError: at the call, without `batch=`, `grad=` or all of the parameters.

    >>> import jax.numpy as jnp, optax
    >>> predict = lambda params, batch: params * batch  # of loss |params|^2 / 2
    >>> transform = optax.chain(
    ...     optax.sgd(100.0), scale_by_friction_limit(predict, "squared_error", damping=0.0)
    ... )
    >>> params, batch = jnp.array([3.0, 4.0]), jnp.ones((8, 1))
    >>> state, grads = transform.init(params), params
    >>> updates, state = transform.update(grads, state, params, batch=batch, grad=grads)
    >>> [round(float(u), 4) for u in updates]
    [-3.0, -4.0]

    Sources: Martens (2020), "New insights and perspectives on the natural gradient method", section
    6.4, for the step that minimises the quadratic model; Friction-Guided Optimization (2026) for
    the friction phi.
    """
    losses.check_loss(loss)
    _checks.non_negative("damping", damping)
    limits = [_friction(loss, damping, weights)]
    if radius is not None:
        _checks.positive("radius", radius)
        limits.append(softmax_radius(radius))
    return limit_updates(
        predict_fn,
        limits,
        name="scale_by_friction_limit",
        every=every,
        examples=examples,
        needs_gradient=True,
        axis_name=axis_name,
    )


def _friction(loss: losses.Loss, damping: Any, weights: Select | None) -> Limit:
    def curvature(outputs: Any, tangent: Any, batch: Any) -> jax.Array:
        return vdot(tangent, losses.output_hessian(loss, outputs, batch, weights)(tangent))

    def scale(curvature: jax.Array, step: Step) -> jax.Array:
        resistance = (curvature + damping) * step.norm
        free = jnp.where(step.slope < 0, jnp.inf, 0.0)
        ratio = -step.slope / jnp.where(resistance > 0, resistance, 1.0)
        return jnp.where(resistance > 0, ratio, free)

    return Limit(curvature, scale, jax.lax.pmean)
