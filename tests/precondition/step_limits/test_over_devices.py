"""Devices that have parts of a batch shorten a step alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fgo_jax.precondition import clip_by_softmax_radius, scale_by_friction_limit


@pytest.mark.parametrize("checks", [True, False])
@pytest.mark.parametrize("make", [clip_by_softmax_radius, scale_by_friction_limit])
def test_devices_with_parts_of_a_batch_take_the_same_step(make, checks):
    def linear(params, batch):
        return batch @ params

    params, grads = jnp.zeros((2, 3)), jnp.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    batch = jnp.array([[1.0, 0.0], [5.0, 0.0]])  # an example for each of two devices
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def step(batch, tx):
        updates, _ = tx.update(-10 * grads, tx.init(params), params, batch=batch, grad=grads)
        return updates[None]

    tx = make(linear, examples=1, axis_name="d")
    spread = jax.shard_map(
        functools.partial(step, tx=tx), mesh=mesh, in_specs=P("d"), out_specs=P("d"),
        check_vma=checks,
    )(batch)  # fmt: skip
    np.testing.assert_array_equal(spread[0], spread[1])
    whole = step(batch, make(linear, examples=2))[0]  # the mean and the largest of both
    np.testing.assert_allclose(spread[0], whole, rtol=1e-6)
    assert not np.array_equal(whole, -10 * grads)


def test_shard_map_asks_for_the_axis():
    tx = clip_by_softmax_radius(lambda params, batch: batch @ params, examples=1)
    params, batch = jnp.zeros((2, 3)), jnp.eye(2)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

    def step(batch):
        return tx.update(jnp.ones_like(params), tx.init(params), params, batch=batch)[0][None]

    with pytest.raises(ValueError, match="pass axis_name='d'"):
        jax.shard_map(step, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(batch)
