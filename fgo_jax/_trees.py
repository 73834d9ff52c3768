"""Arithmetic on pytrees that leaves sharded leaves where they lie."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def vdot(a: Any, b: Any) -> jax.Array:
    """Inner product of two float32 pytrees, leaf by leaf.

    Not `optax.tree.vdot`: as of 0.2.8 it takes JAX 0.10 for a version before 0.7.2 (it
    compares strings) and flattens the leaves, which gathers the sharded ones.
    """

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tensordot(x, y, axes=x.ndim, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.reduce(jnp.add, jax.tree.map(product, a, b), jnp.zeros([], jnp.float32))
