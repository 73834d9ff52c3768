"""Hessians of losses with respect to the model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Loss = str | Callable[[Any, Any], jax.Array]
Product = Callable[[Any], Any]


def _softmax(outputs: jax.Array) -> Product:
    p = jax.nn.softmax(outputs)
    return lambda tangent: p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))


def _sigmoid(outputs: jax.Array) -> Product:
    # sigmoid(-x) and not 1 - sigmoid(x), which is zero from x = 17 on.
    variance = jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)
    return lambda tangent: variance * tangent


def _squared(outputs: jax.Array) -> Product:
    del outputs
    return lambda tangent: tangent


_PER_EXAMPLE = {
    "softmax_cross_entropy": _softmax,
    "sigmoid_cross_entropy": _sigmoid,
    "squared_error": _squared,
}


def check_loss(loss: Loss) -> None:
    if not callable(loss) and loss not in _PER_EXAMPLE:
        raise ValueError(
            f"loss must be one of {', '.join(_PER_EXAMPLE)}, or a function "
            f"(outputs, batch) -> scalar; got {loss!r}."
        )


def output_hessian(loss: Loss, outputs: Any, batch: Any) -> Product:
    """The map from a tangent of the outputs to the loss's Hessian times it, in float32.

    A named loss needs no labels: its Hessian does not depend on them.
    """
    check_loss(loss)
    outputs = optax.tree.cast(outputs, jnp.float32)
    if callable(loss):
        _, product = jax.linearize(jax.grad(lambda z: loss(z, batch)), outputs)
        return product
    if not isinstance(outputs, jax.Array) or outputs.ndim < 2:
        shapes = jax.tree.map(jnp.shape, outputs)
        raise ValueError(
            f"{loss} takes outputs of shape [..., C] with a leading axis of examples, got "
            f"{shapes}: return one array with a last axis (f[..., None] for a scalar per "
            "example), or pass the loss as a function (outputs, batch) -> scalar."
        )
    rows = outputs.size // max(outputs.shape[-1], 1)
    product = _PER_EXAMPLE[loss](outputs)
    return lambda tangent: product(tangent) / rows
