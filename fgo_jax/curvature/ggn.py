"""The generalised Gauss-Newton matrix; for likelihoods it is the Fisher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgo_jax import _checks
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Matvec, Part, check_options, mean_over_chunks
from fgo_jax.curvature.selection import Mask, linearise
from fgo_jax.curvature.weights import Select
from fgo_jax.linalg.operator import named


def ggn(
    predict_fn: Callable[[Any, Any], Any],
    loss: losses.Loss = "softmax_cross_entropy",
    *,
    weights: Select | None = None,
    mask: Mask | None = None,
    chunk_size: int | None = None,
) -> Callable[[Any, Any], Matvec]:
    r"""Products with the generalised Gauss-Newton matrix of a loss over a batch.

    .. math:: F v = J^T H J v, \qquad J = \partial f / \partial \theta,
              \quad H = \nabla^2_f\, \ell

    with f the outputs on the batch and :math:`\ell` the mean loss. The named losses are
    negative log-likelihoods. For them F is the Fisher, its mean over labels drawn from the
    model, and no labels are read:

    - ``"softmax_cross_entropy"``: outputs [..., C] are logits of one class;
    - ``"sigmoid_cross_entropy"``: outputs [..., C] are logits of C yes/no labels;
    - ``"squared_error"``: :math:`\frac12 \|f - y\|^2`.

    Each is summed over the last axis and averaged over all leading ones. With weights w the
    mean is :math:`\sum_i w_i \ell_i / \sum_i w_i`: a 0/1 mask of padding gives the mean over
    the examples it keeps. The mean is a ratio, so two parts of a batch with different sums of
    weights do not average to the whole.

    The model is linearised once per call of the operator. Every product then costs one
    forward and one backward linear pass. For a named loss H is applied by its formula: like a
    gradient, a product keeps nothing of the outputs' size but the outputs and one tangent.
    There is no state and no randomness.

    Inside `jax.shard_map`, with its checks or without, and inside `jax.pmap` the product is of
    the device's own part of the batch: average it (`jax.lax.pmean`) for that of the whole.

    Args:
      predict_fn: ``(params, batch) -> outputs``; picks its inputs out of the batch, and runs
        the model in evaluation mode, as :mod:`fgo_jax.curvature` shows.
      loss: a name from above. Or ``(outputs, batch) -> losses``, twice differentiable and
        convex in the outputs, which are float32 and may be a pytree of any shapes; it
        returns one loss per example, or their mean.
      weights: where the batch holds one weight >= 0 per loss, an array shaped like the
        outputs without their last axis: a key or an index, or ``batch -> weights``.
      mask: as in ``optax.masked``: a pytree of bools shaped like the parameters or a prefix
        of it, or a function from the parameters to one. F is restricted to the leaves that
        are True. On the others the product is zero and the vector is not read.
      chunk_size: examples per chunk, to save memory; None for the whole batch at once. It
        must divide the size of axis 0, which all arrays of the batch share. Each product then
        repeats the forward pass of the model, which adds about a quarter to its cost. A loss
        that returns a mean must weigh the examples equally.

    Returns:
      ``operator(params, batch) -> matvec``. The ``matvec`` maps a pytree shaped like the
      parameters to one in float32, in the unit of the loss over parameters squared. With
      lower-precision parameters the model runs in its own precision: vectors are cast on
      entry, products on exit.

    Raises:
      ValueError: for an unknown loss or a wrong option; when the operator is called, for
        outputs that a named loss cannot take, weights of another shape, a chunk size that
        does not divide the batch, or a mask that chooses nothing.
      TypeError: from JAX, where ``predict_fn`` holds a ``jax.custom_vjp``, which has no
        forward mode; use a ``jax.custom_jvp`` for the probe.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> linear = lambda params, batch: batch["x"] @ params["w"]
      >>> operator = fgo.curvature.ggn(linear, loss="squared_error")
      >>> batch = {"x": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
      >>> matvec = operator({"w": jnp.zeros((2, 1))}, batch)
      >>> matvec({"w": jnp.ones((2, 1))})["w"].ravel().tolist()  # x^T x / 2
      [0.5, 4.5]

    Source: Schraudolph (2002); Martens (2020), "New insights and perspectives on the
    natural gradient method", section 9.
    """
    losses.check_loss(loss)
    check_options(weights, chunk_size)
    _checks.model(predict_fn)

    def build(params: Any, batch: Any, part: Part) -> Matvec:
        del part
        model = linearise(lambda p: predict_fn(p, batch), params, mask)
        hessian = losses.output_hessian(loss, model.outputs, batch, weights)
        return lambda vector: model.pull(hessian(model.push(vector)))

    def operator(params: Any, batch: Any) -> Matvec:
        return mean_over_chunks(build, params, batch, weights, chunk_size)

    return named(operator, "ggn", loss)
