"""Friction is the quadratic form itself."""

import jax.numpy as jnp
import numpy as np

import fgo_jax as fgo


def test_it_is_the_quadratic_form_of_each_direction():
    rng = np.random.default_rng(0)
    weights = {"a": rng.uniform(size=3), "b": rng.uniform(size=(2, 2))}
    directions = {"a": rng.standard_normal((5, 3)), "b": rng.standard_normal((5, 2, 2))}

    def matvec(vector):
        return {name: weights[name] * vector[name] for name in vector}

    stacked = {name: jnp.float32(u) for name, u in directions.items()}
    found = fgo.curvature.friction(matvec, stacked, stacked=True)
    wanted = sum((weights[n] * directions[n] ** 2).reshape(5, -1).sum(1) for n in weights)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    first = {name: u[0] for name, u in stacked.items()}
    np.testing.assert_allclose(fgo.curvature.friction(matvec, first), wanted[0], rtol=1e-5)
