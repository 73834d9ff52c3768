"""A spectrum of parameters that lie on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from fgo_jax.analysis.runs import start_block


def test_it_is_that_of_one_device_and_its_vectors_lie_like_the_parameters():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = {"w": jnp.linspace(-1.0, 1.0, 48).reshape(16, 3), "b": jnp.zeros(3)}
    homes = {"w": NamedSharding(mesh, P("d")), "b": NamedSharding(mesh, P())}
    spread = jax.device_put(params, homes)
    block = start_block(jax.random.key(0), spread, 2)
    assert block["w"].sharding.is_equivalent_to(NamedSharding(mesh, P(None, "d")), 3)

    x = jax.random.normal(jax.random.key(1), (32, 16))
    operator = fgo.curvature.ggn(lambda p, x: x @ p["w"] + p["b"], "softmax_cross_entropy")
    one, many = (fgo.spectrum(operator, p, batch=x, num_steps=12, top=3) for p in (params, spread))
    np.testing.assert_allclose(many.eigenvalues, one.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(many.trace.value, one.trace.value, rtol=1e-3)
    for leaf, home in zip(jax.tree.leaves(many.eigenvectors), jax.tree.leaves(homes), strict=True):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, P(None, *home.spec)), leaf.ndim)
