"""The named losses: their Hessians in the outputs, their labels, their values per example."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import core

from fgo_jax import _checks
from fgo_jax.curvature.weights import Select, check_select, mean_and_weights, pick
from fgo_jax.linalg.operator import named

Loss = str | Callable[[Any, Any], jax.Array]
Product = Callable[[Any], Any]


class _Likelihood(NamedTuple):
    """A loss that is -log p(y | z), up to a constant; float32 outputs z of shape [..., C]."""

    hessian: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, tangent -> H tangent
    draw: Callable[[jax.Array, jax.Array], jax.Array]  # key, z [C] -> one label of the model
    value: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, labels -> losses [...]
    limit: float | None  # dense labels lie in [0, limit]; None for any number


def _softmax_hessian(outputs: jax.Array, tangent: jax.Array) -> jax.Array:
    p = jax.nn.softmax(outputs)
    return p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))


def _softmax_draw(key: jax.Array, z: jax.Array) -> jax.Array:
    # One random number, compared with the distribution function. A Gumbel per class would
    # need several arrays of random bits as large as the outputs.
    cumulative = jnp.cumsum(jax.nn.softmax(z))
    level = jax.random.uniform(key, dtype=jnp.float32) * cumulative[-1]
    return jnp.minimum(jnp.sum(cumulative <= level, dtype=jnp.int32), z.shape[-1] - 1)


def _softmax_value(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    if labels.ndim == outputs.ndim:
        return optax.softmax_cross_entropy(outputs, labels)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def _sigmoid_hessian(outputs: jax.Array, tangent: jax.Array) -> jax.Array:
    # sigmoid(-x) instead of 1 - sigmoid(x), which is zero from x = 17 on.
    return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs) * tangent


_LIKELIHOODS = {
    "softmax_cross_entropy": _Likelihood(
        hessian=_softmax_hessian,
        draw=_softmax_draw,
        value=_softmax_value,
        limit=1.0,
    ),
    "sigmoid_cross_entropy": _Likelihood(
        hessian=_sigmoid_hessian,
        draw=lambda key, z: jax.random.bernoulli(key, jax.nn.sigmoid(z)).astype(jnp.float32),
        value=lambda z, y: jnp.sum(optax.sigmoid_binary_cross_entropy(z, y), axis=-1),
        limit=1.0,
    ),
    "squared_error": _Likelihood(
        hessian=lambda outputs, tangent: tangent,
        draw=lambda key, z: jax.random.normal(key, z.shape, jnp.float32),
        value=lambda z, y: 0.5 * jnp.sum(jnp.square(z - y), axis=-1),
        limit=None,
    ),
}


def check_loss(loss: Loss) -> None:
    """Raises for an unknown name, and for a function of another form."""
    if callable(loss):
        _checks.function("loss", loss, "(outputs, batch) -> losses")
    if not callable(loss) and loss not in _LIKELIHOODS:
        raise ValueError(
            f"loss must be one of {', '.join(_LIKELIHOODS)}, or a function "
            f"(outputs, batch) -> losses; got {loss!r}."
        )


def check_likelihood(loss: Any, reader: str, instead: str) -> None:
    """Raises unless the loss is a named one, whose labels have a known distribution."""
    if callable(loss):
        raise ValueError(
            f"{reader} needs a loss with a known distribution of labels, one of "
            f"{', '.join(_LIKELIHOODS)}, not a function: {instead}"
        )
    check_loss(loss)


def named_outputs(loss: str, outputs: Any) -> jax.Array:
    """The outputs in float32; raises where they do not fit a named loss."""
    if not isinstance(outputs, jax.Array) or outputs.ndim < 2:
        shapes = jax.tree.map(jnp.shape, outputs)
        raise ValueError(
            f"{loss} takes outputs of shape [..., C] with a leading axis of examples, got "
            f"{shapes}: return one array with a last axis (f[..., None] for a scalar per "
            "example), or pass the loss as a function of the outputs."
        )
    if loss == "softmax_cross_entropy" and outputs.shape[-1] < 2:
        raise ValueError(
            f"softmax_cross_entropy over {outputs.shape[-1]} class is constant, got outputs of "
            f"shape {outputs.shape}: put the classes on the last axis, or use "
            "sigmoid_cross_entropy for one yes/no label."
        )
    return outputs.astype(jnp.float32)


def output_hessian(loss: Loss, outputs: Any, batch: Any, weights: Select | None = None) -> Product:
    """The product of the mean loss's Hessian with a tangent of the outputs, in float32.

    The Hessian of a named loss does not depend on the labels.
    """
    if callable(loss):
        outputs = optax.tree.cast(outputs, jnp.float32)
        mean = lambda z: mean_and_weights(loss(z, batch), weights, batch)[0]  # noqa: E731
        return jax.linearize(jax.grad(mean), outputs)[1]
    share = _shares(named_outputs(loss, outputs), weights, batch)
    product = _LIKELIHOODS[loss].hessian
    # The outputs are kept in the model's own dtype and widened in every product. With a large
    # vocabulary this saves a float32 copy of them.
    return lambda tangent: share * product(outputs.astype(jnp.float32), tangent)


def drawn_outer_product(
    loss: str, outputs: Any, labels: jax.Array, batch: Any, weights: Select | None = None
) -> Product:
    """As `output_hessian`, but with r r^T per row, where r is the gradient at the labels."""
    share, residual = drawn_residuals(loss, outputs, labels, batch, weights)
    return lambda t: share * residual * jnp.sum(residual * t, axis=-1, keepdims=True)


def drawn_residuals(
    loss: str, outputs: Any, labels: jax.Array, batch: Any, weights: Select | None = None
) -> tuple[jax.Array, jax.Array]:
    """The share of each row in the mean [..., 1], and its gradient at the labels [..., C].

    The labels are those of :func:`draw_labels`.
    """
    outputs = named_outputs(loss, outputs)
    if loss == "squared_error":
        return _shares(outputs, weights, batch), -labels
    value = _LIKELIHOODS[loss].value
    residual = jax.grad(lambda z: jnp.sum(value(z, labels)))(outputs)
    return _shares(outputs, weights, batch), residual


def drawn_cotangent(
    loss: str, outputs: Any, labels: jax.Array, batch: Any, weights: Select | None = None
) -> jax.Array:
    """c, independent across rows, with E[c c^T] the mean loss's Hessian over drawn labels."""
    share, residual = drawn_residuals(loss, outputs, labels, batch, weights)
    return jnp.sqrt(share) * residual


def draw_labels(loss: str, outputs: Any, key: jax.Array, rows: Callable[[int], Any]) -> jax.Array:
    """Draws one label per row of the outputs; `rows(n)` gives the numbers of the n rows.

    For the squared error it is the label minus the output: float32 may lose unit noise added to a
    large output.

    The label of a row depends only on the key and the row's number, so it is the same in any
    chunk and on any device, for threefry keys, which are JAX's default. Keys of the kind "rbg" draw
    other numbers under `jax.vmap`.
    """
    outputs = named_outputs(loss, outputs)
    leading = outputs.shape[:-1]
    numbers = jnp.reshape(rows(int(np.prod(leading))), leading)

    def draw(number: jax.Array, z: jax.Array) -> jax.Array:
        return _LIKELIHOODS[loss].draw(jax.random.fold_in(key, number), z)

    sharding = jax.typeof(outputs).sharding
    if sharding.mesh.explicit_axes:
        # vmap needs equal shardings of what it maps over.
        spec = jax.sharding.PartitionSpec(*sharding.spec[: len(leading)])
        numbers = jax.sharding.reshard(numbers, jax.sharding.NamedSharding(sharding.mesh, spec))
    # One vmap per axis: flattening the leading axes could gather a sharded one.
    return functools.reduce(lambda f, _: jax.vmap(f), leading, draw)(numbers, outputs)


def _shares(outputs: jax.Array, weights: Select | None, batch: Any) -> jax.Array:
    """The weight of each row in the mean, [..., 1]."""
    rows = jnp.zeros(outputs.shape[:-1], jnp.float32)
    return mean_and_weights(rows, weights, batch)[1][..., None]


def example_losses(
    predict_fn: Callable[[Any, Any], jax.Array],
    loss: str = "softmax_cross_entropy",
    labels: Select = "label",
) -> Callable[[Any, Any], jax.Array]:
    r"""Makes the losses of single examples from a model and a named loss.

    .. math:: \ell_i = -\log p(y_i \mid f_i(\theta))

    up to a constant for the squared error, summed over the last axis of the outputs. The
    result is what :func:`empirical_fisher` and :func:`hessian` take. Labels are:

    - ``"softmax_cross_entropy"``: integers [...] in [0, C), or probabilities [..., C];
    - ``"sigmoid_cross_entropy"``: numbers [..., C] in [0, 1];
    - ``"squared_error"``: numbers [..., C].

    Args:
      predict_fn: ``(params, batch) -> outputs`` [..., C], as for :func:`ggn`.
      loss: a name from above.
      labels: where the batch holds them: a key or an index, or ``batch -> labels``.

    Returns:
      ``example_loss_fn(params, batch) -> losses`` [...], float32.

    Raises:
      ValueError: for an unknown name; when called, for outputs or labels whose shapes do not
        fit, and for concrete labels out of range. Labels traced by a ``jit`` have no value
        to check: an example whose label is out of range then has the loss NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> fn = fgo.curvature.example_losses(
      ...     lambda params, batch: batch["x"] * params, "squared_error", "y"
      ... )
      >>> fn(jnp.array([2.0]), {"x": jnp.ones((3, 1)), "y": jnp.zeros((3, 1))}).tolist()
      [2.0, 2.0, 2.0]

    Source: the likelihoods of the categorical, Bernoulli and normal distributions.
    """
    check_likelihood(loss, "example_losses", "write (params, batch) -> losses directly.")
    check_select("labels", labels)
    _checks.model(predict_fn)

    def example_loss_fn(params: Any, batch: Any) -> jax.Array:
        outputs = named_outputs(loss, predict_fn(params, batch))
        found = pick("labels", labels, batch)
        _check_labels(loss, outputs.shape, found)
        values = _LIKELIHOODS[loss].value(outputs, jnp.asarray(found))
        # A factor: a `where` would give zero derivatives, and so a wrong curvature.
        return values * _one_or_nan(loss, outputs.shape, jnp.asarray(found))

    return named(example_loss_fn, loss)


def _limit(loss: str, outputs: tuple[int, ...], labels: Any) -> float | None:
    """The largest valid label; the smallest is zero. None where any number is valid."""
    integers = loss == "softmax_cross_entropy" and jnp.shape(labels) == outputs[:-1]
    return outputs[-1] - 1 if integers else _LIKELIHOODS[loss].limit


def _one_or_nan(loss: str, outputs: tuple[int, ...], labels: jax.Array) -> jax.Array:
    """[...]: 1, and NaN for a label out of range, which a `jit` hides from `_check_labels`."""
    limit = _limit(loss, outputs, labels)
    if limit is None:
        return jnp.ones(outputs[:-1], jnp.float32)
    # Mixed labels may be above their limit by rounding.
    exact = jnp.issubdtype(labels.dtype, jnp.integer)
    valid = (labels >= 0) & (labels <= (int(limit) if exact else limit * (1 + 1e-3)))
    if labels.ndim == len(outputs):
        valid = jnp.all(valid, axis=-1)
    return jnp.where(valid, jnp.float32(1.0), jnp.float32(jnp.nan))


def _check_labels(loss: str, outputs: tuple[int, ...], labels: Any) -> None:
    shape, dtype = jnp.shape(labels), jnp.result_type(labels)
    integers = loss == "softmax_cross_entropy" and shape == outputs[:-1]
    if not (shape == outputs or (integers and jnp.issubdtype(dtype, jnp.integer))):
        form = (
            f"{outputs}"
            if loss != "softmax_cross_entropy"
            else (f"{outputs[:-1]} (integers) or {outputs} (probabilities)")
        )
        raise ValueError(
            f"{loss} of outputs {outputs} takes labels of shape {form}, got {dtype} of shape "
            f"{shape}: reshape or cast the labels."
        )
    limit = _limit(loss, outputs, labels)
    # numpy, because inside a trace jnp.min() of even a concrete array is traced.
    concrete = not isinstance(labels, core.Tracer) and getattr(labels, "is_fully_addressable", True)
    if limit is None or not concrete or not np.size(labels):
        return
    low, high = np.min(np.asarray(labels)), np.max(np.asarray(labels))
    if not (low >= 0 and high <= limit):
        raise ValueError(
            f"{loss} takes labels from 0 to {limit:g}, got {low} to {high}: to leave an example "
            "out, give it any valid label and a weight of zero."
        )
