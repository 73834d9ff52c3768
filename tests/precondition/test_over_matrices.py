"""A function of many matrices in few loops gives what it gives one matrix at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.precondition.shared.over_matrices import over_matrices


def test_every_place_gets_the_result_of_its_own_matrix():
    shapes = [(3, 3), (2, 3, 3), (2, 2), (1, 2, 3, 3), (2, 2)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    factors = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    others = [2.0 * factor for factor in factors]

    def pair(a, b):
        return a @ b, jnp.trace(a)

    found = over_matrices(pair, factors, others)
    for (product, trace), a, b in zip(found, factors, others, strict=True):
        assert trace.shape == a.shape[:-2]
        np.testing.assert_allclose(product, np.matmul(a, b), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(trace, np.trace(a, axis1=-2, axis2=-1), rtol=1e-6)
    loops = str(jax.make_jaxpr(lambda *xs: over_matrices(pair, xs, xs))(*factors)).count(" scan[")
    assert loops == 2  # one for each size
    assert over_matrices(pair, [], []) == []
