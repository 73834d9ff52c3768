"""A linen TrainState: extra arguments reach the optimizer, and averaged weights come out."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import fgo_jax as fgo
from fgo_jax.integrations.flax import TrainState

PARAMS = {"w": jnp.ones(3)}


def made(tx, **fields):
    return TrainState.create(apply_fn=None, params=PARAMS, tx=tx, **fields)


def reader(seen):
    """A transform that notes its extra arguments."""

    def update(updates, state, params=None, **extras):
        seen.append(extras)
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_extras_go_to_the_optimizer_and_fields_to_the_state():
    seen = []
    state = made(optax.chain(reader(seen), optax.sgd(0.5)), batch_stats={"mean": jnp.zeros(2)})
    extras = {"value": 1.0, "batch": {"x": 2.0}, "validation_value": 3.0, "mine": 4.0}
    moved = state.apply_gradients(grads=PARAMS, batch_stats={"mean": jnp.ones(2)}, **extras)
    assert seen == [extras]
    assert moved.batch_stats["mean"].tolist() == [1.0, 1.0]
    assert moved.params["w"].tolist() == [0.5] * 3
    assert (moved.step, moved.tx) == (1, state.tx)
    assert jax.tree.structure(moved) == jax.tree.structure(state.replace(step=1))


def test_fields_of_a_subclass_are_replaced_as_in_flax():
    class WithKey(TrainState):
        key: jax.Array

    state = WithKey.create(apply_fn=None, params=PARAMS, tx=optax.sgd(0.5), key=jnp.int32(0))
    moved = state.apply_gradients(grads=PARAMS, key=jnp.int32(7), value=1.0)
    assert (type(moved), int(moved.key)) == (WithKey, 7)


def test_every_field_of_the_state_may_be_replaced_and_the_step_is_of_the_old_one():
    state, other = made(optax.sgd(0.5)), optax.sgd(0.1, momentum=0.9)
    given = {
        "step": 7,
        "apply_fn": jnp.sum,
        "tx": other,
        "opt_state": other.init(PARAMS),
        "batch_stats": {"mean": jnp.ones(2)},
    }
    moved = state.apply_gradients(grads=PARAMS, **given)
    for name, value in given.items():
        assert getattr(moved, name) is value, name
    assert moved.params["w"].tolist() == [0.5] * 3
    assert state.apply_gradients(grads=PARAMS, params={"w": 2.0}).params == {"w": 2.0}


@pytest.mark.parametrize("make", [lambda: optax.sgd(0.5), lambda: optax.MultiSteps(_fgo(), 1)])
def test_without_extras_it_is_flax_s_own(make):
    tx = make()
    flax_s = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=tx)
    ours = made(tx)
    for _ in range(2):
        flax_s = flax_s.apply_gradients(grads=PARAMS)
        ours = ours.apply_gradients(grads=PARAMS)
    jax.tree.map(np.testing.assert_array_equal, flax_s.params, ours.params)
    jax.tree.map(np.testing.assert_array_equal, flax_s.opt_state, ours.opt_state)


def _fgo(**options):
    """One phase without a probe, which compiles at once."""
    return fgo.phased([fgo.acquisition(0.1, 0, transform=optax.identity())], [], **options)


def test_the_loss_arrives_through_multi_steps_and_a_validation_in_a_scan():
    def step(state, number):
        grads = {"w": state.params["w"] * jnp.cos(number)}
        state = state.apply_gradients(grads=grads, value=number, validation_value=-number)
        told = fgo.telemetry(state.opt_state)
        return state, (told["loss"], told["validation"])

    for tx in (_fgo(average_weights=0.5), optax.MultiSteps(_fgo(average_weights=0.5), 1)):
        state, (losses, validations) = jax.lax.scan(step, made(tx), jnp.arange(4.0))
        assert losses.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert validations.tolist() == [0.0, -1.0, -2.0, -3.0]
        expected = fgo.eval_params(state.opt_state, state.params)
        jax.tree.map(np.testing.assert_array_equal, state.eval_params, expected)
        assert not np.array_equal(state.eval_params["w"], state.params["w"])


def test_a_misspelt_argument_and_a_missing_average_are_named():
    with pytest.raises(TypeError, match="did you mean value="):
        made(_fgo()).apply_gradients(grads=PARAMS, loss=1.0)
    with pytest.raises(ValueError, match="average_weights="):
        _ = made(_fgo()).eval_params


def test_scales_of_eight_bit_floats_pass_by_the_optimizer():
    params = {"params": PARAMS, "_overwrite_with_gradient": {"scale": jnp.float32(1.0)}}
    tx = optax.chain(optax.sgd(0.5), fgo.average_weights(0.5))
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    grads = {"params": PARAMS, "_overwrite_with_gradient": {"scale": jnp.float32(9.0)}}
    state = state.apply_gradients(grads=grads, value=1.0)
    assert float(state.eval_params["_overwrite_with_gradient"]["scale"]) == 9.0
    assert jax.tree.structure(state.eval_params) == jax.tree.structure(params)


def test_it_is_saved_and_restored_by_flax():
    tx = _fgo(average_weights=0.5)
    state = made(tx, batch_stats={"mean": jnp.ones(2)}).apply_gradients(grads=PARAMS, value=1.0)
    blank = made(tx, batch_stats={"mean": jnp.zeros(2)})
    for restored in (
        flax.serialization.from_bytes(blank, flax.serialization.to_bytes(state)),
        flax.serialization.from_state_dict(blank, flax.serialization.to_state_dict(state)),
    ):
        jax.tree.map(np.testing.assert_array_equal, restored, state)
