"""States with masked and empty parts: what checkpoints take, and the way out where they do not."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

PARAMS = {"a": jnp.ones(2), "b": jnp.ones((3, 2)), "c": jnp.ones(())}
WITHOUT_SIZE = {**PARAMS, "empty": jnp.zeros((0, 3))}


def protocol():
    return fgo.target_acquisition(
        1e-2, 3, transform={"acquisition": optax.scale_by_adam()}, average_weights=0.1
    )


WRAPPED = {
    "alone": protocol,
    "masked": lambda: optax.masked(protocol(), {"a": True, "b": False, "c": True}),
    "all masked": lambda: optax.masked(protocol(), {"a": False, "b": False, "c": False}),
    "partition": lambda: optax.partition(
        {"x": protocol(), "y": optax.set_to_zero(), "nobody": protocol()},
        {"a": "x", "b": "y", "c": "x"},
    ),
}


def by_flax(state, like, path):
    del path
    return flax.serialization.from_bytes(like, flax.serialization.to_bytes(state))


def by_orbax(state, like, path):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", like)


def by_leaves(state, like, path):
    """Orbax, and any store of named arrays: the leaves that have a size, by their number."""
    held = {str(i): x for i, x in enumerate(jax.tree.leaves(state)) if x.size}
    leaves, structure = jax.tree.flatten(like)
    slots = {str(i): x for i, x in enumerate(leaves) if x.size}
    restored = by_orbax(held, slots, path)
    return jax.tree.unflatten(structure, [restored.get(str(i), x) for i, x in enumerate(leaves)])


def moved(tx, params):
    """A state whose numbers are not those of a new one."""
    return jax.tree.map(lambda x: ~x if x.dtype == bool else x + x.dtype.type(1), tx.init(params))


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("way", [by_flax, by_orbax])
@pytest.mark.parametrize("name", WRAPPED)
def test_saved_and_restored(name, way, tmp_path):
    tx = WRAPPED[name]()
    state = moved(tx, PARAMS)
    assert_same(way(state, tx.init(PARAMS), tmp_path), state)


def test_arrays_of_no_size(tmp_path):
    """Orbax refuses them, from any optimizer; leave them out, or use Flax."""
    with pytest.raises(ValueError, match="zero size"):
        by_orbax({"mu": WITHOUT_SIZE}, {"mu": WITHOUT_SIZE}, tmp_path / "refused")
    tx = protocol()
    state, fresh = moved(tx, WITHOUT_SIZE), tx.init(WITHOUT_SIZE)
    assert_same(by_flax(state, fresh, tmp_path), state)
    assert_same(by_leaves(state, fresh, tmp_path / "leaves"), state)


TRANSFORMS = {
    "kronecker": fgo.scale_by_kronecker_fisher,
    "shampoo": lambda: fgo.scale_by_kronecker_fisher(corrected=False),
    "kfac": lambda: fgo.scale_by_kfac(lambda params, batch: batch),
    "fismo": fgo.scale_by_fismo,
    "diagonal": lambda: fgo.scale_by_diagonal_fisher(lambda params, batch: batch),
    "low rank": lambda: fgo.scale_by_low_rank_fisher(
        fgo.curvature.ggn(lambda params, batch: batch)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_state_of_a_part_without_leaves_has_only_arrays_that_can_be_saved(name):
    state = TRANSFORMS[name]().init({"a": optax.MaskedNode(), "b": None})
    assert all(leaf.size for leaf in jax.tree.leaves(state))
