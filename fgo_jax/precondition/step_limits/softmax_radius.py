"""Clips an update to the radius within which a softmax's expansion holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.precondition.step_limits.along_update import Limit, Step, limit_updates


def clip_by_softmax_radius(
    predict_fn: Callable[[Any, Any], Any],
    radius: jax.typing.ArrayLike = 0.5,
    *,
    every: jax.typing.ArrayLike = 10,
    examples: int | None = None,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens an update that would move the logits of some example too far apart.

    Not a direction: it goes last in a chain, after the learning rate and the minus sign: the
    proposed update p is what is added to the parameters.

    With z the logits [..., C] and J their Jacobian in the parameters,

        a = J p / ||p||,   Delta = max over examples of (max_k a_k - min_k a_k),
        update = p min(1, radius pi / (Delta ||p||)).

    To first order, the logits of an example move apart by at most Delta ||p|| along the step. The
    logarithm of the partition function, continued to complex steps, has no singularity closer than
    pi / Delta. Within that distance the loss equals its own Taylor series; beyond it derivatives at
    the current point need not predict the loss. The radius is a share of that distance.

    Delta is measured at the first step and then every `every` steps, by one jvp of the model on the
    first examples of the batch, inside one conditional. Between measurements the last Delta is
    combined with the ||p|| of the step. So a step that is suddenly a thousand times longer, because
    the learning rate jumped, is clipped at that very step. A change of *direction* is seen at most
    `every` steps late; `every=1` sees all. A measurement that is not finite, or of a zero update,
    does not count: the last one holds. If there is none yet, nothing is clipped, and the next step
    measures again.

    A leaf with a non-finite entry, or whose squares overflow float32, gets a zero update and does
    not count.

    Args:
      predict_fn: ``(params, batch) -> logits`` [..., C]; it picks its inputs from the batch.
      radius: logits may move apart by at most radius * pi, to first order: 0.5 is 1.57.
      every: steps from one measurement to the next.
      examples: how many leading examples of the batch are measured; None for an eighth of it.
      axis_name: inside `jax.pmap` or `jax.shard_map`, the axis over whose devices
        the largest Delta counts. All of them then take the same step, if their updates are equal.
        Without it `jax.shard_map` raises an error; under `jax.pmap` their steps differ.

    Returns:
      A gradient transformation whose `update` needs `params` and the extra argument `batch`
      (arrays with the examples along axis 0). `shrinkage` in its state is the last factor. The
      state holds a few numbers: 0 bytes per parameter.

    Raises:
      ValueError: for an argument out of its range; at the call, for outputs that are no logits and
        for a batch that is too small, or differs between devices without `axis_name`.
      TypeError: at the call, without `batch=` or all of the parameters.

    >>> import jax.numpy as jnp, optax
    >>> predict = lambda params, batch: batch @ params
    >>> transform = optax.chain(optax.sgd(100.0), clip_by_softmax_radius(predict))
    >>> params, batch = jnp.zeros((2, 2)), jnp.eye(2)
    >>> grads = jnp.array([[1.0, -1.0], [0.0, 0.0]])
    >>> updates, _ = transform.update(grads, transform.init(params), params, batch=batch)
    >>> round(float(updates.max() - updates.min()), 4)  # pi / 2
    1.5708

    Source: arXiv 2603.13552, 2026; every step is measured there.
    """
    _checks.positive("radius", radius)
    return limit_updates(
        predict_fn,
        [softmax_radius(radius)],
        name="clip_by_softmax_radius",
        every=every,
        examples=examples,
        needs_gradient=False,
        axis_name=axis_name,
    )


def softmax_radius(radius: Any) -> Limit:
    """The limit radius pi / (Delta ||p||)."""

    def spread(outputs: Any, tangent: Any, batch: Any) -> jax.Array:
        del batch
        if not isinstance(outputs, jax.Array) or outputs.ndim < 2 or outputs.shape[-1] < 2:
            raise ValueError(
                "the softmax radius needs logits of shape [..., C], C >= 2, with a leading axis of "
                f"examples, got {jax.tree.map(jnp.shape, outputs)}: let predict_fn return one such "
                "array."
            )
        return jnp.max(jnp.max(tangent, axis=-1) - jnp.min(tangent, axis=-1), initial=0.0)

    def scale(spread: jax.Array, step: Step) -> jax.Array:
        moved = spread * step.norm
        return jnp.where(moved > 0, math.pi * radius / jnp.where(moved > 0, moved, 1.0), jnp.inf)

    return Limit(spread, scale, jax.lax.pmax)
