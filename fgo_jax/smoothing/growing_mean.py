"""A running mean whose memory is a constant share, about c, of the trees averaged so far.

With t trees so far, m <- m + (x - m)/(c t + 1). The weight of tree s is proportional to
s^(1/c - 1). The first step is 1, so the initial value of the mean has no effect.

In bfloat16 a late step is less than the last bit of the mean, so it is rounded at random.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg.hashes import rounded_at_random
from fgo_jax.linalg.trees import wide


def zeros(params: Any, dtype: Any = None) -> Any:
    """The initial mean, zeros shaped like the parameters; in float32 (or wider) if None."""

    def zero(leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, dtype or jnp.promote_types(jnp.result_type(leaf), "f4"))

    return jax.tree.map(zero, params)


def moved(mean: Any, tree: Any, window: Any, seen: jax.Array, taken: Any = True) -> Any:
    """The mean with one more tree in it if that is `taken`.

    Args:
      window: c.
      seen: [], of any dtype; trees in the mean so far.
    """
    step = 1.0 / (window * seen.astype(jnp.float32) + 1.0)
    first = 0

    def move(m: jax.Array, x: jax.Array) -> jax.Array:
        nonlocal first
        old = wide(m)
        new = old + (step * (x.astype(old.dtype) - old)).astype(old.dtype)
        new = rounded_at_random(new, m.dtype, seen.astype(jnp.uint32), first)
        first += m.size
        # A choice, not a product with zero: a tree that is not taken may be infinite.
        return jnp.where(taken, new, m)

    return jax.tree.map(move, mean, tree)
