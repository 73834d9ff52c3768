"""Gradients of single examples at fixed parameters, and their inner products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.linalg.devices import AxisName, as_varying, mean_over, varying_axes

# `(params, batch) -> pytree shaped like the parameters, with a leading axis of rows`.
RowsFn = Callable[[Any, Any], Any]


def example_gradients(
    example_loss_fn: Callable[[Any, Any], Any], chunk_size: int | None = None
) -> RowsFn:
    r"""Makes the rows of :func:`fgo_jax.probes.gram`: the gradient of every single example.

    .. math:: g_i = \nabla_\theta\, \ell(\theta, x_i)

    Args:
      example_loss_fn: ``(params, example) -> scalar``. The example is the batch without its
        axis 0; a model that needs that axis takes ``x[None]``.
      chunk_size: how many examples are differentiated at once, a divisor of their number;
        None for all. It bounds the memory of activations. All gradients are kept either way.

    Returns:
      ``rows_fn(params, batch)``, a pytree shaped like the parameters with a leading axis of
      examples.

    Raises:
      ValueError: for a chunk size that is not a positive integer; when traced, for one that
        does not divide the examples.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> rows_fn = fgo.probes.example_gradients(lambda p, x: jnp.sum(p * x**2), chunk_size=2)
      >>> rows_fn(jnp.ones(1), jnp.array([[1.0], [2.0], [3.0], [4.0]])).ravel().tolist()
      [1.0, 4.0, 9.0, 16.0]

    Source: the definition above.
    """
    _checks.function("example_loss_fn", example_loss_fn, "(params, example) -> loss")
    if chunk_size is not None:
        _checks.positive_int("chunk_size", chunk_size)

    def rows_fn(params: Any, batch: Any) -> Any:
        params = as_varying(params, varying_axes(batch))

        def gradient(example: Any) -> Any:
            return jax.grad(example_loss_fn)(params, example)

        if chunk_size is None:
            return jax.vmap(gradient)(batch)
        size = jax.tree.leaves(batch)[0].shape[0]
        if size % chunk_size:
            divisor = max(d for d in range(1, min(chunk_size, size) + 1) if size % d == 0)
            raise ValueError(
                f"chunk_size={chunk_size} does not divide the {size} examples that the probe "
                f"reads: pass chunk_size={divisor}, or examples= a multiple of {chunk_size}."
            )
        return jax.lax.map(gradient, batch, batch_size=chunk_size)

    return rows_fn


def row_count(rows: Any, minimum: int) -> int:
    """The common leading axis of all leaves, as a Python integer."""
    if callable(rows):
        raise ValueError(
            "rows_fn must return rows, got a function, as an operator returns: pass "
            "fgo.probes.example_gradients(example_loss_fn)."
        )
    shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(rows)}
    if len(shapes) != 1 or () in shapes:
        raise ValueError(
            "rows_fn must return a pytree whose leaves share a leading axis of rows, got "
            f"leading axes {sorted(shapes)}: stack the gradients along axis 0."
        )
    ((n,),) = shapes
    if n < minimum:
        raise ValueError(
            f"the probe needs at least {minimum} rows but rows_fn made {n}: pass a larger "
            "examples=, or make smaller micro-batches."
        )
    return n


def leaf_gram(leaf: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """[n + 1, n + 1], float32; the part of a leaf [n, ...] in the inner products of rows.

    They are products of the rows minus the mean row and, last, of the mean row. Products of the
    rows themselves would lose noise far below the mean. With `axis_name` the rows are those of all
    its devices, gathered one leaf at a time.
    """
    axes = tuple(range(1, leaf.ndim))
    if axis_name is not None:
        leaf = jax.lax.all_gather(leaf, axis_name, tiled=True)
    mean = jnp.mean(leaf, axis=0, keepdims=True)
    leaf = leaf - mean  # any common row would do, so the mean may be rounded

    def inner(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tensordot(
            a,
            b,
            axes=(axes, axes),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
            out_sharding=mesh.replicated(leaf, 2),
        )

    cross = inner(leaf, mean)
    products = jnp.block([[inner(leaf, leaf), cross], [cross.T, inner(mean, mean)]])
    # Equal on all devices already. Only a mean tells JAX so.
    return mean_over(axis_name, products)
