"""The empirical Fisher: the uncentred second moment of single-example gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.curvature.chunks import Matvec, Part, check_options, mean_over_chunks
from fgo_jax.curvature.selection import Mask, linearise
from fgo_jax.curvature.weights import Select, mean_and_weights
from fgo_jax.linalg.operator import named


def empirical_fisher(
    example_loss_fn: Callable[[Any, Any], jax.Array],
    *,
    weights: Select | None = None,
    mask: Mask | None = None,
    chunk_size: int | None = None,
) -> Callable[[Any, Any], Matvec]:
    r"""Products with the mean outer product of single-example gradients at the data's labels.

    .. math:: F v = \frac1n \sum_i g_i (g_i^T v) = \frac1n J^T (J v),
              \qquad J_{ij} = \partial \ell_i / \partial \theta_j

    With weights it is :math:`J^T \mathrm{diag}(w) J v / \sum_i w_i`. J is the Jacobian of
    the vector of losses. A product takes one forward and one backward linear pass, and no
    single gradient is ever formed. So the function takes the whole batch and needs no
    ``vmap``; one that uses ``vmap`` works too.

    Every entry of the losses is an example of its own. With losses [batch, time] every
    position is one; sum over time where a sequence is the example. Where the loss of an entry
    depends on other examples (batch normalisation), so does its gradient.

    It is not the Fisher: the labels are the data's. Near a good fit it falls with the
    residuals, while :func:`ggn` does not.

    Args:
      example_loss_fn: ``(params, batch) -> losses`` [...] with at least one axis, as
        :func:`example_losses` makes it from a model and labels. The model runs in evaluation
        mode, as :mod:`fgo_jax.curvature` shows.
      weights: where the batch holds one weight >= 0 per loss: a key or an index, or
        ``batch -> weights`` [...].
      mask, chunk_size: as in :func:`ggn`.

    Returns:
      ``operator(params, batch) -> matvec`` as in :func:`ggn`; products are in the unit of the
      loss squared over parameters squared.

    Raises:
      ValueError: for wrong options, as :func:`ggn`; when the operator is called, for a scalar
        loss.
      TypeError: from JAX, where the function holds a ``jax.custom_vjp``.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> operator = fgo.curvature.empirical_fisher(lambda params, batch: batch @ params)
      >>> matvec = operator(jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 3.0]]))
      >>> matvec(jnp.ones(2)).tolist()
      [0.5, 4.5]

    Source: Kunstner et al. (2019), equation 3; Martens (2020), section 11.
    """
    check_options(weights, chunk_size)
    _checks.function("example_loss_fn", example_loss_fn, "(params, batch) -> losses")

    def build(params: Any, batch: Any, part: Part) -> Matvec:
        del part
        model = linearise(lambda p: example_loss_fn(p, batch), params, mask)
        if not isinstance(model.outputs, jax.Array) or not jnp.ndim(model.outputs):
            shapes = jax.tree.map(jnp.shape, model.outputs)
            raise ValueError(
                f"empirical_fisher needs one loss per example, an array [n], got {shapes}: "
                "return the losses before their mean."
            )
        shares = mean_and_weights(model.outputs, weights, batch)[1]
        return lambda vector: model.pull(shares * model.push(vector))

    def operator(params: Any, batch: Any) -> Matvec:
        return mean_over_chunks(build, params, batch, weights, chunk_size)

    return named(operator, "empirical_fisher", example_loss_fn)
