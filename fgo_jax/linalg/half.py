"""Powers of two that keep derivatives within float16, which ends at 65,504 and at 2^-24."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg.trees import sum_squares


def has_half(tree: Any) -> bool:
    """Whether a leaf is float16."""
    return any(jnp.result_type(leaf) == jnp.float16 for leaf in jax.tree.leaves(tree))


def scaled_up(params: Any, derivative: Callable[[float], Any]) -> Any:
    """derivative(1), or for float16 parameters derivative(1024) where that is finite.

    The cotangents of a mean over n examples have the factor 1/n, which float16 may not hold.

    Args:
      derivative: of the loss times a scale, over the scale; a function of the scale.
    """
    if not has_half(params):
        return derivative(1.0)
    large = derivative(2.0**10)
    finite = jnp.isfinite(sum_squares(large))
    return jax.lax.cond(finite, lambda: large, lambda: derivative(1.0))


def vector_scale(vector: Any) -> jax.Array:
    """The power of two, [], that brings the largest entry to 1; with many rows, to less.

    Products sum over the rows.
    """
    leaves = [c for c in jax.tree.leaves(vector) if c.size]
    rows = max((math.prod(c.shape[: max(c.ndim - 1, 1)]) for c in leaves), default=1)
    largest = [jnp.max(jnp.abs(c)).astype(jnp.float32) for c in leaves]
    _, exponent = jnp.frexp(functools.reduce(jnp.maximum, largest, jnp.float32(0.0)))
    wanted = -max(rows.bit_length() - 11, 0)  # 2^10 rows may each have an entry of 1
    return jnp.ldexp(jnp.float32(1.0), jnp.clip(wanted - exponent, -126, 126))
