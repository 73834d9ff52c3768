"""A running mean whose memory is a constant share, about c, of the trees averaged so far.

With t trees so far, m <- m + (x - m)/(c t + 1). The weight of tree s is proportional to
s^(1/c - 1). The first step is 1, so the initial value of the mean has no effect.

A late step is less than the last bit of the mean. In bfloat16 it is rounded at random; in float32,
from `_LATE` on, up at a share of steps that is its size in last bits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.linalg.hashes import rounded_at_random
from fgo_jax.linalg.rows import power_below
from fgo_jax.linalg.trees import wide

# The memory in trees, c t + 1, up to which float32 is rounded as usual. Such a mean stops at a
# relative distance of 6e-8 times the memory: 0.06 % here.
_LATE = 1e4


def zeros(params: Any, dtype: Any = None) -> Any:
    """The initial mean, zeros shaped like the parameters; in float32 (or wider) if None."""

    def zero(leaf: Any) -> jax.Array:
        return jnp.zeros_like(leaf, dtype or jnp.promote_types(jnp.result_type(leaf), "f4"))

    return jax.tree.map(zero, params)


def moved(
    mean: Any, tree: Any, window: Any, seen: jax.Array, taken: Any = True, *, close: bool = True
) -> Any:
    """The mean with one more tree in it if that is `taken`.

    Args:
      window: c.
      seen: [], of any dtype; trees in the mean so far.
      close: whether trees are close to the mean, as weights are. Single directions are far longer
        than their mean, so no step is lost, and a leaf has 15 operations fewer.
    """
    memory = window * seen.astype(jnp.float32) + 1.0
    step = 1.0 / memory
    # Multiples of the golden ratio fill [0, 1) more evenly than random numbers.
    golden = (seen.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)).astype(jnp.float32) * 2.0**-32
    threshold = jnp.where(memory > _LATE, golden, jnp.inf)
    first = 0

    def move(m: jax.Array, x: jax.Array) -> jax.Array:
        nonlocal first
        old = wide(m)
        gap = x.astype(old.dtype) - old
        new = old + (step * gap).astype(old.dtype)
        if close and m.dtype == jnp.float32:
            new = _with_lost(new, old, gap, step, threshold)
        if _checks.number(window) in (None, 0):
            # The sum would lose a tree far smaller than the mean.
            new = jnp.where(window == 0, x.astype(old.dtype), new)
        new = rounded_at_random(new, m.dtype, seen.astype(jnp.uint32), first)
        first += m.size
        # A choice, not a product with zero: a tree that is not taken may be infinite.
        return jnp.where(taken, new, m)

    return jax.tree.map(move, mean, tree)


def _with_lost(new: Any, old: Any, gap: Any, step: Any, threshold: Any) -> jax.Array:
    """new = old + step * gap, moved by its last bit if more of that was lost than the threshold.

    With thresholds spread evenly over [0, 1) nothing is lost in the mean.
    """
    # All in units of 2^-23, in which the last bit of a number is the power of two below it. So the
    # product differs from that in `new`, and the rounding of `new` does not change.
    lost = (step * 2.0**23) * gap - (new - old) * 2.0**23
    power = power_below(new)
    moved = new + jnp.copysign(power * 2.0**-23, lost)
    return jnp.where(jnp.abs(lost) > threshold * power, moved, new)
