"""A running mean whose memory is a constant share, about c, of the trees averaged so far.

With t trees so far, m <- m + (x - m)/(c t + 1). The weight of tree s is proportional to
s^(1/c - 1). The first step is 1, so the initial value of the mean has no effect.

A late step is less than the last bit of the mean. In bfloat16 it is rounded at random. From `_LATE`
on only some of the trees are taken, each with as much more weight.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.linalg.hashes import rounded_at_random
from fgo_jax.linalg.rows import power_below
from fgo_jax.linalg.trees import wide

# The memory in trees, c t + 1, from which trees are left out, so that float32 still moves: it stops
# at a relative distance of 6e-8 over the step. The noise of the mean is then that of so many trees.
_LATE = 1e4


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
    step = _step(window * seen.astype(jnp.float32) + 1.0, seen.astype(jnp.uint32))
    first = 0

    def move(m: jax.Array, x: jax.Array) -> jax.Array:
        nonlocal first
        old = wide(m)
        new = old + (step * (x.astype(old.dtype) - old)).astype(old.dtype)
        if _checks.number(window) in (None, 0):
            # The sum would lose a tree far smaller than the mean.
            new = jnp.where(window == 0, x.astype(old.dtype), new)
        new = rounded_at_random(new, m.dtype, seen.astype(jnp.uint32), first)
        first += m.size
        # A choice, not a product with zero: a tree that is not taken may be infinite.
        return jnp.where(taken, new, m)

    return jax.tree.map(move, mean, tree)


def _step(memory: jax.Array, seen: jax.Array) -> jax.Array:
    """1 / memory; late in a run one tree of every k takes k times that, times a number in [0, 2).

    The numbers have the mean 1. They spread the rounding of a mean that is far from its trees.
    """
    every = jnp.maximum(2.0 * power_below(memory / _LATE), 1.0).astype(jnp.uint32)
    # Multiples of the golden ratio fill [0, 2) more evenly than random numbers.
    spread = (seen // every * jnp.uint32(0x9E3779B9)).astype(jnp.float32) * 2.0**-31
    late = jnp.where(seen % every == 0, every.astype(jnp.float32) * spread, 0.0)
    return jnp.where(memory > _LATE, late, 1.0) / memory
