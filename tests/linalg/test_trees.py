"""Sums over all leaves of a tree, few or many."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.linalg.trees import for_sums, vdot


@pytest.mark.parametrize("count", [5, 300])
def test_a_sum_takes_every_entry_once(count):
    shapes = ((3,), (2, 4), (20, 20), (), (0, 2), (4, 2))
    tree, start = [], 0
    for i in range(count):
        size = int(np.prod(shapes[i % 6]))
        tree.append(jnp.arange(start, start + size, dtype=jnp.float32).reshape(shapes[i % 6]))
        start += size
    parts = for_sums(tree)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([np.ravel(x) for x in parts])), np.arange(start)
    )
    assert len(parts) == 1 + sum(leaf.shape == (20, 20) for leaf in tree)


@pytest.mark.parametrize("kind", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_an_inner_product_is_float32_of_any_real_dtype(kind):
    tree = {"w": jnp.full(10, 300.0, kind), "b": jnp.ones((2, 3), kind)}
    product = vdot(tree, tree)
    assert product.dtype == jnp.float32
    assert product == 10 * float(tree["w"][0]) ** 2 + 6
    with pytest.raises(ValueError, match="got complex"):
        vdot(jnp.ones(2), jnp.ones(2, jnp.complex64))
