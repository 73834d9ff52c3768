"""Devices with parts of a batch read what one reads of the whole; or each has its own model."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo
from tests.linalg.devices_program import PARTS

# Operators serve all others, so they alone are tried in every way.
WAYS = {
    "operators": ("checked", "unchecked", "pmap", "vmap"),
    "probes": ("checked", "pmap"),
    "training": ("checked", "pmap"),
    "transforms": ("checked", "unchecked"),
}


@pytest.mark.parametrize(("part", "way"), [(part, way) for part in WAYS for way in WAYS[part]])
def test_eight_devices_are_as_one(part, way):
    PARTS[part](way)


OPTIMIZERS = {
    "average": lambda: optax.chain(optax.sgd(0.1), fgo.average_weights(0.1)),
    "primal averaging": lambda: fgo.triple_momentum(4.0, 1.0),
    "phases": lambda: fgo.target_acquisition(
        0.1,
        transform=optax.scale_by_adam(),
        average_weights=0.1,
        probe=fgo.probes.joined(fgo.probes.gradient_stream(), fgo.probes.trajectory()),
    ),
    "step limit": lambda: fgo.clip_by_softmax_radius(
        lambda params, batch: batch @ params["w"] + params["b"], 1.0
    ),
    "preconditioner": lambda: fgo.kronecker_fisher(0.1),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_device_may_train_parameters_of_its_own(name, inside):
    """JAX compares the types of a loop's states as it traces, on one device as on many."""
    tx = optax.with_extra_args_support(OPTIMIZERS[name]())
    params = {"w": jnp.ones((1, 3, 2)), "b": jnp.ones((1, 2))}
    states = jax.eval_shape(jax.vmap(tx.init), params)

    def run(params, state):
        params, state = jax.tree.map(lambda x: x[0], (params, state))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, batch=jnp.ones((4, 3)))
            return (optax.apply_updates(params, updates), state), None

        start = params, tx.init(params) if inside else state
        return jax.tree.map(lambda x: x[None], jax.lax.scan(step, start, length=2)[0])

    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("device")
    mapped = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split)
    given = jax.eval_shape(lambda *trees: trees, params, states)
    found = jax.eval_shape(mapped, params, states)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(found)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(given)
    ]
