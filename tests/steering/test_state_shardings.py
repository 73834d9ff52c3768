"""The places of a state in the abstract. On real meshes: many_devices_program, explicit_program."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fgo_jax as fgo

PARAMS = {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32), "bias": jnp.zeros(4)}


def on_mesh(axis, *spec):
    kind = (AxisType.Auto,)
    return NamedSharding(jax.make_mesh((1,), (axis,), axis_types=kind), PartitionSpec(*spec))


def test_a_tree_of_shardings_and_their_mesh():
    rows, all_of_it = on_mesh("data", "data"), on_mesh("data")
    homes = fgo.state_shardings(optax.adam(1e-3), PARAMS, {"kernel": rows, "bias": all_of_it})
    assert homes[0].mu == homes[0].nu
    assert homes[0].mu["kernel"].mesh == rows.mesh
    assert "data" in homes[0].mu["kernel"].spec
    assert "data" not in homes[0].mu["bias"].spec
    with jax.set_mesh(rows.mesh):
        again = fgo.state_shardings(optax.adam(1e-3), {**PARAMS, "none": None}, rows)
    assert again[0].mu.keys() == {*PARAMS, "none"}
    assert again[0].mu["bias"] == rows


def test_parameters_on_no_mesh_and_on_two_are_refused():
    with pytest.raises(ValueError, match="bias has no NamedSharding"):
        fgo.state_shardings(optax.adam(1e-3), PARAMS)
    with pytest.raises(ValueError, match="lie on 2 meshes"):
        fgo.state_shardings(
            optax.adam(1e-3), PARAMS, {"kernel": on_mesh("data"), "bias": on_mesh("model")}
        )
