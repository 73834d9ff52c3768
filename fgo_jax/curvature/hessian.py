"""The Hessian of the loss; unlike the Fisher it may be indefinite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.curvature.chunks import Matvec, Part, check_options, mean_over_chunks
from fgo_jax.curvature.selection import Mask, select
from fgo_jax.curvature.weights import Select, mean_and_weights
from fgo_jax.linalg import half
from fgo_jax.linalg.operator import named


def hessian(
    loss_fn: Callable[[Any, Any], jax.Array],
    *,
    weights: Select | None = None,
    mask: Mask | None = None,
    chunk_size: int | None = None,
) -> Callable[[Any, Any], Matvec]:
    r"""Products with the Hessian of a mean loss over a batch.

    .. math:: H v = \frac{d}{d\epsilon} \nabla \ell(\theta + \epsilon v) \big|_{\epsilon = 0}

    The gradient is linearised once per call of the operator (forward over reverse), and every
    product is one linear pass. H is symmetric and may be indefinite: for probes of positive
    semi-definite operators use :func:`ggn`. With float16 parameters the loss and the vectors are
    scaled by powers of two, and products are scaled back.

    Args:
      loss_fn: ``(params, batch) -> losses``, twice differentiable: one per example, whose
        (weighted) mean is taken, or a scalar that is such a mean. It runs the model in
        evaluation mode, as :mod:`fgo_jax.curvature` shows.
      weights: as in :func:`empirical_fisher`; they need one loss per example.
      mask, chunk_size: as in :func:`ggn`. A scalar loss in chunks must be a mean with equal
        weights over axis 0 of the batch.

    Returns:
      ``operator(params, batch) -> matvec`` as in :func:`ggn`.

    Raises:
      ValueError: for wrong options, as :func:`ggn`; when the operator is called, for weights
        of a scalar loss.
      TypeError: from JAX, where the function holds a ``jax.custom_vjp``.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> operator = fgo.curvature.hessian(lambda params, batch: batch * jnp.prod(params))
      >>> matvec = operator(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
      >>> matvec(jnp.array([1.0, 10.0])).tolist()  # 2 [[0, 1], [1, 0]] v
      [20.0, 2.0]

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """
    check_options(weights, chunk_size)
    _checks.function("loss_fn", loss_fn, "(params, batch) -> losses")

    def build(params: Any, batch: Any, part: Part) -> Matvec:
        del part
        selection = select(params, mask)

        def gradient(scale: float) -> Callable[[list[Any]], list[Any]]:
            def mean(leaves: list[Any]) -> jax.Array:
                losses = loss_fn(selection.merge(leaves), batch)
                return scale * mean_and_weights(losses, weights, batch)[0]

            return jax.grad(mean)

        if not half.has_half(params):
            _, push = jax.linearize(gradient(1.0), selection.leaves)
            return lambda vector: selection.expand(push(selection.pick(vector)))

        def product(vector: Any) -> Any:
            # Entries of a long unit vector, and their products, would be zero in float16.
            chosen = [v.astype(jnp.float32) for v in selection.chosen_of(vector)]
            factor = half.vector_scale(chosen)
            larger = optax.tree.cast_like([factor * v for v in chosen], selection.leaves)

            def scaled(scale: float) -> Any:
                _, found = jax.jvp(gradient(scale), (selection.leaves,), (larger,))
                return jax.tree.map(lambda p: p / scale / factor, selection.expand(found))

            return half.scaled_up(params, scaled)

        return product

    def operator(params: Any, batch: Any) -> Matvec:
        return mean_over_chunks(build, params, batch, weights, chunk_size)

    return named(operator, "hessian", loss_fn)
