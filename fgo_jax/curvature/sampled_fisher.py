"""The Fisher of labels drawn from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Matvec, Part, check_options, mean_over_chunks
from fgo_jax.curvature.selection import Mask, linearise
from fgo_jax.curvature.weights import Select
from fgo_jax.linalg.operator import named


def sampled_fisher(
    predict_fn: Callable[[Any, Any], Any],
    loss: str = "softmax_cross_entropy",
    *,
    weights: Select | None = None,
    mask: Mask | None = None,
    chunk_size: int | None = None,
) -> Callable[..., Matvec]:
    r"""Products with the mean outer product of gradients at labels drawn from the model.

    .. math:: \hat F v = \sum_i w_i\, g_i (g_i^T v) / \sum_i w_i,
              \qquad g_i = \nabla_\theta\, \ell(f_i, \hat y_i), \quad \hat y_i \sim p(y \mid f_i)

    over all rows i of the outputs [..., C], with w = 1 where no weights are given. Its mean
    over the draws is the Fisher, that is :func:`ggn`. Its rank is at most the number of rows.
    The labels are classes for a softmax, yes or no for every sigmoid, and outputs plus unit
    Gaussian noise for the squared error. A product costs as much as one of :func:`ggn`. Where
    only the mean is needed, take :func:`ggn`: it is exact.

    The key is an argument of the operator, ``operator(params, batch, key=key)``, so the
    caller decides when to draw anew. All products of one matvec share the labels, as a Krylov
    process needs. For a fixed draw use ``functools.partial(operator, key=key)``, an
    ``(params, batch) -> matvec`` like any other. The random number of a row depends on the
    key and on its place in the batch, not on chunks or devices, for threefry keys, which are
    JAX's default.

    Args:
      predict_fn: ``(params, batch) -> outputs`` [..., C], rows in the order of the examples, from
        the model in evaluation mode, as :mod:`fgo_jax.curvature` shows.
      loss: ``"softmax_cross_entropy"``, ``"sigmoid_cross_entropy"`` or ``"squared_error"``.
      weights, mask, chunk_size: as in :func:`ggn`.

    Returns:
      ``operator(params, batch, *, key) -> matvec`` as in :func:`ggn`; ``key`` is a JAX PRNG
      key, typed or raw.

    Raises:
      ValueError: as :func:`ggn`; also for a loss given as a function, which has no labels to
        draw.
      TypeError: where the operator is called without a key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> operator = fgo.curvature.sampled_fisher(
      ...     lambda params, batch: batch * params, "sigmoid_cross_entropy"
      ... )
      >>> matvec = operator(jnp.zeros(1), jnp.ones((8, 1)), key=jax.random.key(0))
      >>> matvec(jnp.ones(1)).tolist()  # (p - y)^2 with p = 1/2, for any y
      [0.25]

    Source: Martens (2020), sections 5 and 11; Kunstner et al. (2019), "Limitations of the
    empirical Fisher approximation for natural gradient descent".
    """
    losses.check_likelihood(loss, "sampled_fisher", "use ggn, which needs no labels.")
    check_options(weights, chunk_size)
    _checks.model(predict_fn)

    def operator(params: Any, batch: Any, *, key: jax.Array) -> Matvec:
        def build(params: Any, batch: Any, part: Part) -> Matvec:
            model = linearise(lambda p: predict_fn(p, batch), params, mask)
            labels = losses.draw_labels(loss, model.outputs, key, part.rows)
            outer = losses.drawn_outer_product(loss, model.outputs, labels, batch, weights)
            return lambda vector: model.pull(outer(model.push(vector)))

        return mean_over_chunks(build, params, batch, weights, chunk_size)

    return named(operator, "sampled_fisher", loss)
