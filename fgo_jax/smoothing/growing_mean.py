"""A running mean whose memory is a constant share, about c, of what it has seen.

With t trees seen, m <- m + (x - m)/(c t + 1): the weight of tree s is proportional to
s^(1/c - 1). The first one's step is 1, so what the mean starts from is forgotten.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def zeros(params: Any) -> Any:
    """Where a mean starts: f32 (or wider), shaped like the parameters."""

    def wide(leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, jnp.promote_types(leaf.dtype, jnp.float32))

    return jax.tree.map(wide, params)


def moved(mean: Any, tree: Any, window: Any, seen: jax.Array, taken: Any = True) -> Any:
    """The mean with one more tree in it, unless that is not `taken`.

    Args:
      window: c.
      seen: [], of any dtype; trees in the mean so far.
    """
    step = 1.0 / (window * seen.astype(jnp.float32) + 1.0)

    def move(m: jax.Array, x: jax.Array) -> jax.Array:
        # Chosen, not multiplied by zero: what is not taken may be infinite.
        return jnp.where(taken, m + (step * (x.astype(m.dtype) - m)).astype(m.dtype), m)

    return jax.tree.map(move, mean, tree)
