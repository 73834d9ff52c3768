"""Phases are told by their names: in telemetry, in words, by hand, and in a checkpoint."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.design import TOLD

t = fgo.triggers
PARAMS = {"w": jnp.ones(3)}
IDENTITY = optax.identity()


def phase(name):
    return fgo.Phase(name, lambda progress: jnp.float32(0.1), IDENTITY)


def phases_of(*names, **options):
    return fgo.phased([phase(name) for name in names], [t.after(1)] * (len(names) - 1), **options)


def run(tx, steps):
    state = tx.init(PARAMS)
    for _ in range(steps):
        _, state = tx.update(PARAMS, state, PARAMS)
    return state


@pytest.mark.parametrize("name", ["best_value", "hyperparams"])
def test_optax_finds_its_own_fields_beside_ours(name):
    plateau = optax.contrib.reduce_on_plateau()

    def make(learning_rate):
        phases = [fgo.acquisition(learning_rate, transform=IDENTITY)]
        return fgo.keep_best(optax.chain(fgo.phased(phases, []), plateau))

    state = optax.inject_hyperparams(make)(learning_rate=0.1).init(PARAMS)
    own = {"best_value": plateau.init(PARAMS).best_value, "hyperparams": {"learning_rate": 0.1}}
    jax.tree.map(np.testing.assert_allclose, optax.tree.get(state, name), own[name])


def test_the_protocols_telemetry_is_keyed_by_phase():
    told = fgo.telemetry(fgo.target_acquisition(1e-2).init(PARAMS))
    for name in ("acquisition", "reask", "execution"):
        assert {f"started/{name}", f"cause/{name}"} <= set(told)
    assert "condition/acquisition/agreement_below" in told
    assert "condition/reask/agreement_below" in told
    assert "condition/execution/validation_plateau" in told
    assert not [key for key in told if key[-1].isdigit()]
    # A probe's signal may have none of these names.
    own = {key.partition("/")[0] + "/" * ("/" in key) for key in told}
    signals = {"loss", "validation", *fgo.probes.gradient_stream().signals}
    assert own - signals == {name for name in TOLD if not name.startswith("layer_")}


def test_phases_with_names_of_their_own():
    # Twelve, not in alphabetical order: the order is that of the list.
    names = [f"{letter} phase" for letter in "zyxwvutsrqpo"]
    state = run(phases_of(*names), 7)
    told = fgo.telemetry(state)
    started = [int(told[f"started/{name}"]) for name in names]
    assert started == [0, 2, 4, 6, *[-1] * 8]
    assert [int(told[f"condition/{name}/after"]) for name in names[:3]] == [1, 1, 1]
    said = fgo.explain(state)
    assert said.startswith("In w phase since step 6")
    assert "Y phase began at step 2: its trigger held." in said
    assert int(fgo.force_phase(state, "o phase").clock.requested_phase) == 11


def test_two_phases_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two phases are called 'polish'.*give each its own"):
        phases_of("polish", "other", "polish")


@pytest.mark.parametrize("name", ["", "a/b", None])
def test_a_name_is_a_word(name):
    with pytest.raises(ValueError, match="needs a name without a slash"):
        phase(name)


def test_a_wrong_name_lists_the_right_ones():
    state = phases_of("hot", "cold").init(PARAMS)
    with pytest.raises(ValueError, match="must be one of hot, cold, got 'reask'"):
        fgo.force_phase(state, "reask")
    with pytest.raises(ValueError, match="not among the 2 phases 0 to 1: hot, cold"):
        fgo.force_phase(state, 2)
    for index in (None, 0.5, True, -1):
        with pytest.raises(ValueError, match="index of a phase must be an integer >= 0"):
            fgo.force_phase(state, index)
    assert int(fgo.force_phase(state, "cold").clock.requested_phase) == 1
    assert int(fgo.force_phase(state, 1).clock.requested_phase) == 1


def same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_names_survive_tree_map_jit_and_flax_checkpoints():
    tx = phases_of("hot", "cold")
    state = run(tx, 3)
    same(jax.tree.map(lambda x: x, state), state)
    same(jax.jit(lambda s: s)(state), state)
    fresh = tx.init(PARAMS)
    same(flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state)), state)
    assert fgo.telemetry(jax.jit(lambda s: s)(state)).keys() == fgo.telemetry(fresh).keys()


def test_names_survive_an_orbax_checkpoint(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = phases_of("hot", "cold")
    state = run(tx, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(PARAMS))
    same(restored, state)
    assert fgo.explain(restored) == fgo.explain(state)
