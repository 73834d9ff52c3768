"""Sums over all leaves of a tree, few or many."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.linalg.trees import for_sums


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
