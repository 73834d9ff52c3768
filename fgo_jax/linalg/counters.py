"""Counters of steps that stop at the largest int32, where a sum would turn negative."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def later(step: jax.Array, gap: jax.Array) -> jax.Array:
    """step + gap, [], int32, both at least 0; at most the largest int32."""
    return step + jnp.minimum(gap, jnp.iinfo(jnp.int32).max - step)
