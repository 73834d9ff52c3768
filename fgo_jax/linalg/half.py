"""Powers of two that keep derivatives within float16, which ends at 65,504 and at 2^-24."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp


def has_half(tree: Any) -> bool:
    """Whether a leaf is float16."""
    return any(jnp.result_type(leaf) == jnp.float16 for leaf in jax.tree.leaves(tree))


def loss_scale(params: Any) -> float:
    """What to multiply a mean loss by before it is differentiated; 1 without float16 leaves.

    The cotangents of a mean over n examples have the factor 1/n. That of the losses' sum need not
    fit, but gradients and rows of the Hessian of up to 64 do.
    """
    return 2.0**10 if has_half(params) else 1.0


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
