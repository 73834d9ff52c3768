"""A running mean whose memory is a constant share, about c, of the trees averaged so far.

With t trees so far, m <- m + (x - m)/(c t + 1). The weight of tree s is proportional to
s^(1/c - 1). The first step is 1, so the initial value of the mean has no effect.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def zeros(params: Any) -> Any:
    """The initial mean: zeros in float32 (or wider), shaped like the parameters."""

    def wide(leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(wide, params)


def moved(mean: Any, tree: Any, window: Any, seen: jax.Array, taken: Any = True) -> Any:
    """The mean with one more tree in it if that is `taken`.

    Args:
      window: c.
      seen: [], of any dtype; trees in the mean so far.
    """
    step = 1.0 / (window * seen.astype(jnp.float32) + 1.0)

    def move(m: jax.Array, x: jax.Array) -> jax.Array:
        # A choice, not a product with zero: a tree that is not taken may be infinite.
        return jnp.where(taken, m + (step * (x.astype(m.dtype) - m)).astype(m.dtype), m)

    return jax.tree.map(move, mean, tree)
