"""Clips an update to the radius within which a softmax's expansion holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.precondition.step_limits.along_update import Limit, Step, check_predict, limit_updates


def clip_by_softmax_radius(
    predict_fn: Callable[[Any, Any], Any],
    radius: jax.typing.ArrayLike = 0.5,
    *,
    every: jax.typing.ArrayLike = 10,
    examples: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shortens an update that would move the logits of some example too far apart.

    For a proposed update p, with z the logits [..., C] and J their Jacobian in the parameters,

        a = J p / ||p||,   Delta = max over examples of (max_k a_k - min_k a_k),
        update = p min(1, radius pi / (Delta ||p||)).

    Along the step the logits of an example move apart by at most Delta ||p|| (to first order); the
    logarithm of the partition function, continued to complex steps, has its nearest singularity no
    closer than pi / Delta, so within it the loss is its own Taylor series, and beyond it no
    gradient says what it does. The radius is a share of that distance.

    It goes last in a chain, behind the learning rate, since p is what is added to the parameters:

        optax.chain(optax.adam(learning_rate), fgo.clip_by_softmax_radius(predict_fn))

    Delta is measured at every `every`-th step, from the first one on, by one jvp of the model on
    the first examples of the batch, inside one conditional; in between, the last Delta is taken
    with the ||p|| of the step. So a step that is suddenly a thousand times longer, by a jump of
    the learning rate, is clipped at that very step, whether one measures there or not. A change of
    *direction* is seen `every` steps late at most; `every=1` sees all. A measurement that is
    not finite, or of a zero update, does not count: the last one holds, and is made up for at
    the next step if it was the first. Until one succeeds nothing is clipped.

    A leaf with a non-finite entry, or whose squares overflow float32, gets a zero update and takes
    no part.

    Args:
      predict_fn: ``(params, batch) -> logits`` [..., C]; picks its inputs out of the batch.
      radius: share of the radius of convergence; 1 is the bound itself, 0.5 cautious.
      every: steps from one measurement to the next.
      examples: how many leading examples of the batch are measured; None for an eighth of it.

    Returns:
      A gradient transformation whose `update` needs `params` and the extra argument `batch`,
      arrays with the examples along axis 0. `shrinkage` in its state is the last factor.

    Raises:
      ValueError: an argument out of its range; at the call, outputs that are no logits and a batch
        that is too small.
      TypeError: at the call, without `batch=` or all of the parameters.

    >>> import jax.numpy as jnp, optax
    >>> predict = lambda params, batch: batch @ params
    >>> transform = optax.chain(optax.sgd(100.0), clip_by_softmax_radius(predict))
    >>> params, batch = jnp.zeros((2, 2)), jnp.eye(2)
    >>> grads = jnp.array([[1.0, -1.0], [0.0, 0.0]])
    >>> updates, _ = transform.update(grads, transform.init(params), params, batch=batch)
    >>> round(float(updates.max() - updates.min()), 4)  # pi / 2
    1.5708

    Source: arXiv 2603.13552, 2026; there with every step measured.
    """
    check_predict(predict_fn)
    _checks.positive("radius", radius)
    return limit_updates(
        predict_fn,
        [softmax_radius(radius)],
        name="clip_by_softmax_radius",
        every=every,
        examples=examples,
        needs_gradient=False,
    )


def softmax_radius(radius: Any) -> Limit:
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

    return Limit(spread, scale)
