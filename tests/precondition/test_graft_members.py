"""What a graft takes over from its two members."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgo_jax.precondition import graft, scale_by_layer_noise
from tests.directions import Doubling


def member(keeps_scale):
    return Doubling.made(0.0, metric=lambda grads, state: grads, keeps_scale=keeps_scale)


@pytest.mark.parametrize(
    ("magnitude", "direction", "weight", "keeps"),
    [
        (True, True, 0.5, True),
        (False, True, 0.5, False),
        (True, False, 0.5, False),
        (False, True, 0.0, True),
        (True, False, 1.0, True),
        (False, True, 1.0, False),
        (True, False, 0.0, False),
        (None, True, 0.5, None),  # phases try it
        (None, False, 0.5, False),
        (None, True, 0.0, True),
    ],
)
def test_it_keeps_the_scale_if_all_that_make_its_length_do(magnitude, direction, weight, keeps):
    assert graft(member(magnitude), member(direction), weight).keeps_scale is keeps


def test_a_step_that_is_not_finite_stays_out_of_both_states():
    # Sums of all gradients: what enters once never leaves.
    tx = graft(optax.trace(1.0), optax.trace(1.0), 0.5)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    state, update = tx.init(params), jax.jit(tx.update)
    _, before = update({"a": jnp.ones(2), "b": jnp.ones(2)}, state)
    _, after = update({"a": jnp.float32([jnp.nan, 2.0]), "b": jnp.ones(2)}, before)
    for one in (after.magnitude_state, after.direction_state):
        np.testing.assert_array_equal(one.trace["a"], [1.0, 3.0])
        np.testing.assert_array_equal(one.trace["b"], [2.0, 2.0])
    updates, _ = update({"a": jnp.ones(2), "b": jnp.ones(2)}, after)
    assert np.isfinite(updates["a"]).all()


def test_a_members_own_marks_of_what_it_cannot_measure_stay():
    noise = scale_by_layer_noise(optax.scale_by_sign(), every=3)
    grafted, alone = graft(optax.identity(), noise), noise
    state, own = grafted.init(jnp.ones(3)), alone.init(jnp.ones(3))
    for size in (1.0, 1.0, 5.0, jnp.nan, 9.0):  # a pair is the first and second of three
        gradient = jnp.full(3, size)
        _, state = grafted.update(gradient, state)
        _, own = alone.update(gradient, own)
    np.testing.assert_array_equal(state.direction_state.layer_noise, own.layer_noise)


def test_a_member_may_hold_a_key_outside_of_jit():
    tx = graft(optax.add_noise(0.1, 0.55, jax.random.key(0)), optax.scale_by_sign())
    updates, _ = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
    assert np.isfinite(updates).all()
