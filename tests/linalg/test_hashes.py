"""Rounding at random: to one of two neighbours, and right in the mean."""

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.linalg.hashes import rounded_at_random


def test_a_number_goes_to_its_neighbours_and_keeps_its_mean():
    x = jnp.asarray([1.0, 1.001, -3.14159, 1e-20, 0.0, 300.5], jnp.float32)
    seeds = jnp.arange(4000, dtype=jnp.uint32)
    rounded = jax.jit(jax.vmap(lambda s: rounded_at_random(x, jnp.dtype(jnp.bfloat16), s, 7)))(
        seeds
    )
    found = np.asarray(rounded, np.float64)
    step = np.abs(np.asarray(x, np.float64)) * 2.0**-7  # at least the distance of neighbours
    assert np.all(np.abs(found - np.asarray(x, np.float64)) <= step)
    # The error of a mean of 4,000 is at most half a step over their root; four of these.
    np.testing.assert_array_less(
        np.abs(found.mean(0) - np.asarray(x, np.float64)), 4 * 0.5 * step / 4000**0.5 + 1e-30
    )
    assert np.all(found[:, 0] == 1.0)  # what bfloat16 holds stays
    assert len(np.unique(found[:, 2])) == 2


def test_neighbours_in_place_and_time_are_independent():
    x = jnp.full((2, 1000), 1.0 + 2.0**-8)  # half way between two numbers
    up = np.stack(
        [rounded_at_random(x, jnp.dtype(jnp.bfloat16), jnp.uint32(s), 0) > x for s in (3, 4)]
    )
    signs = 2.0 * up.reshape(4, 1000) - 1.0
    # Correlations of 1,000 pairs, and four standard errors.
    assert np.all(np.abs(signs @ signs.T / 1000 - np.eye(4)) < 4 / 1000**0.5)


def test_what_is_not_finite_stays_so_and_other_types_round_as_usual():
    # Infinities, and NaNs of all kinds: a carry out of the lower bits must reach no exponent.
    bits = [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF]
    odd = jax.lax.bitcast_convert_type(jnp.asarray(bits, jnp.uint32), jnp.float32)
    np.testing.assert_array_equal(
        rounded_at_random(odd, jnp.dtype(jnp.bfloat16), jnp.uint32(1), 0).astype(jnp.float32), odd
    )
    x = jnp.asarray([1.0001])
    for dtype in (jnp.float16, jnp.float32):
        found = rounded_at_random(x, jnp.dtype(dtype), jnp.uint32(1), 0)
        np.testing.assert_array_equal(found, x.astype(dtype))
