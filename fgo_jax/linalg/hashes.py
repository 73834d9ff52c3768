"""Random bits from the position of a number: the same on every mesh, and no key to keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def positions(shape: tuple[int, ...], first: int) -> jax.Array:
    """first, first + 1, ... in row-major order; uint32, wrapping beyond 2^32 entries."""
    position = jnp.full(shape, first % 2**32, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(
            stride % 2**32
        )
        stride *= shape[axis]
    return position


def mixed(bits: jax.Array) -> jax.Array:
    """Finaliser of MurmurHash3: every input bit flips every output bit half of the time."""
    bits = bits ^ (bits >> 16)
    bits = bits * jnp.uint32(0x85EBCA6B)
    bits = bits ^ (bits >> 13)
    bits = bits * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def rounded_at_random(x: jax.Array, dtype: jnp.dtype, seed: jax.Array, first: int) -> jax.Array:
    """x in bfloat16, rounded up or down so that the mean is x; in any other dtype as usual.

    A running mean that moves by less than half of its last bit would not move at all.

    Args:
      x: float32.
      dtype: of the result.
      seed: [], uint32; another one for every step.
      first: the place of the first number of x among all that have this seed.
    """
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    # The cast drops the lower 16 bits; a carry out of them rounds up. Non-finite values are cast as
    # usual: the carry would turn a NaN of all ones into -0.
    noise = mixed(positions(x.shape, first) + mixed(seed)) >> 16
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    rounded = jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), dtype)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(dtype))
