"""The generalised Gauss-Newton matrix, which for likelihoods is the Fisher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax.curvature import losses

Matvec = Callable[[Any], Any]


def ggn(
    predict_fn: Callable[[Any, Any], Any],
    loss: losses.Loss = "softmax_cross_entropy",
) -> Callable[[Any, Any], Matvec]:
    r"""Products with the generalised Gauss-Newton matrix of a loss over a batch.

    .. math:: F v = J^T H J v, \qquad J = \partial f / \partial \theta, \quad
              H = \nabla^2_f\, \ell

    with f the outputs on the batch and :math:`\ell` the mean loss. For the named losses,
    which are negative log-likelihoods, F is the Fisher (its expectation over labels drawn
    from the model), so ``v^T F v`` is the friction along v and no labels are read:

    - ``"softmax_cross_entropy"``: outputs [..., C] are logits of one class;
    - ``"sigmoid_cross_entropy"``: outputs [..., C] are logits of C yes/no labels;
    - ``"squared_error"``: :math:`\frac12 \|f - y\|^2`;

    each summed over the last axis and averaged over all leading ones.

    The model is linearised once per call of the operator, and its linear map transposed;
    every product then costs one forward and one backward linear pass. There is no state
    and no randomness; a dropout key belongs in ``predict_fn``.

    Args:
      predict_fn: ``(params, batch) -> outputs``; picks its inputs out of the batch.
      loss: a name from above, or ``(outputs, batch) -> scalar``, twice differentiable and
        convex in the outputs, called with float32 outputs (then a pytree of any shape).

    Returns:
      ``operator(params, batch) -> matvec``, where ``matvec`` takes a pytree shaped like
      the parameters and returns one, in float32 and in the unit of the loss over
      parameters squared. With lower-precision parameters the model still runs in its
      own precision: the vector is cast on entry and the product on exit.

    Raises:
      ValueError: for an unknown name of a loss (here), or outputs that a named loss cannot
        take (when the operator is called).
      TypeError: from JAX, where ``predict_fn`` holds a ``jax.custom_vjp``, which has no
        forward mode; give it a ``jax.custom_jvp`` for the probe.

    Example:
      >>> import jax.numpy as jnp
      >>> linear = lambda params, batch: batch["x"] @ params["w"]
      >>> operator = ggn(linear, loss="squared_error")
      >>> batch = {"x": jnp.array([[1.0, 0.0], [0.0, 3.0]])}
      >>> matvec = operator({"w": jnp.zeros((2, 1))}, batch)
      >>> matvec({"w": jnp.ones((2, 1))})["w"].ravel().tolist()  # x^T x / 2
      [0.5, 4.5]

    Source: Schraudolph (2002); Martens (2020), "New insights and perspectives on the
    natural gradient method", section 9.
    """
    losses.check_loss(loss)

    def operator(params: Any, batch: Any) -> Matvec:
        outputs, push = jax.linearize(lambda p: predict_fn(p, batch), params)
        pull = jax.linear_transpose(push, params)
        hessian = losses.output_hessian(loss, outputs, batch)

        def matvec(vector: Any) -> Any:
            tangent = push(optax.tree.cast_like(vector, params))
            cotangent = hessian(optax.tree.cast(tangent, jnp.float32))
            (product,) = pull(optax.tree.cast_like(cotangent, outputs))
            return optax.tree.cast(product, jnp.float32)

        return matvec

    return operator
