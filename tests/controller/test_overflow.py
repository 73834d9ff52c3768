"""What overflows float32 is a bad step: skipped, counted, and forgotten."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

SHAPES = {"matrix": (3, 2), "vector": (4,)}
PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}


TRANSFORMS = {
    "adam": optax.scale_by_adam(),
    "identity": optax.identity(),
    "trace": optax.trace(0.9),
    "default": None,
}


@functools.cache
def make(name):
    tx = fgo.target_acquisition(
        1e-2, 3, transform=TRANSFORMS[name], handover_steps=4, weight_decay=0.1,
        average_weights=0.1,
        triggers={"acquisition": fgo.triggers.after(2), "reask": fgo.triggers.after(2)},
    )  # fmt: skip
    return tx, jax.jit(tx.update)


def finite(tree):
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(bool(jnp.isfinite(x).all()) for x in floats)


def gradient(rng, size=1.0):
    return {name: jnp.asarray(size * rng.normal(size=s), jnp.float32) for name, s in SHAPES.items()}


@pytest.mark.parametrize("size", [1e19, 1e25, 1e38])
@pytest.mark.parametrize("name", ["adam", "identity", "default"])
def test_a_gradient_too_large_to_square_is_skipped_and_the_stream_recovers(name, size):
    tx, update = make(name)
    rng = np.random.default_rng(0)
    params, state = PARAMS, tx.init(PARAMS)
    for number in range(30):
        bad = number in (7, 20, 21)
        updates, new = update(gradient(rng, size if bad else 1.0), state, params)
        if bad:
            assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
            kept = new._replace(skipped_steps=state.skipped_steps)
            jax.tree.map(np.testing.assert_array_equal, kept, state)
        state = new
        params = optax.apply_updates(params, updates)
    assert int(state.skipped_steps) == 3
    assert finite((updates, params, state.slow, state.average, state.transforms))
    assert any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_a_loss_too_large_to_square_is_skipped_too():
    tx, update = make("identity")
    # The square of 5e18 is a float32, but a sum of a few such squares is not.
    for size, skipped in ((1e17, 0), (5e18, 1), (1e25, 1)):
        _, state = update(PARAMS, tx.init(PARAMS), PARAMS, value=jnp.float32(size))
        assert int(state.skipped_steps) == skipped


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e15])
def test_small_and_merely_large_gradients_are_taken(size):
    tx, update = make("identity")
    rng = np.random.default_rng(1)
    updates, state = update(gradient(rng, size), tx.init(PARAMS), PARAMS)
    assert int(state.skipped_steps) == 0
    assert finite((updates, state.slow))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_are_squared_in_float32(dtype):
    tx, update = make("adam")
    params = {"w": jnp.ones(3, dtype)}
    _, state = update({"w": jnp.full(3, 3e4, dtype)}, tx.init(params), params)
    assert int(state.skipped_steps) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_direction_is_not_rounded_to_the_dtype_of_half_precision_gradients(dtype):
    grads = jnp.asarray(7e3 * jnp.sin(jnp.arange(1.0, 13.0)), dtype)
    trace = optax.trace(0.99)

    @functools.partial(jax.jit, static_argnums=0)
    def last(tx):
        def step(state, _):
            updates, state = tx.update(grads, state, params)
            return state, updates

        params = jnp.ones(12)
        return jax.lax.scan(step, tx.init(params), length=12)[1][-1]

    phase = fgo.phased([fgo.acquisition(1e-4, 0, transform=trace)], [])
    expected = last(optax.chain(trace, optax.scale_by_learning_rate(1e-4)))
    np.testing.assert_allclose(last(phase), expected, rtol=1e-6)


def test_a_skipped_step_gives_zeros_even_where_parameters_are_infinite():
    tx, update = make("identity")
    params = {"matrix": jnp.full((3, 2), jnp.inf), "vector": jnp.ones(4)}
    grads = {"matrix": jnp.full((3, 2), jnp.nan), "vector": jnp.ones(4)}
    updates, _ = update(grads, tx.init(PARAMS), params)
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("seed", range(4))
def test_streams_of_mixed_extremes(seed):
    tx, update = make("trace")
    rng = np.random.default_rng(seed)
    state = tx.init(PARAMS)
    for _ in range(25):
        sizes = rng.choice([0.0, 1e-40, 1e-20, 1.0, 1e10, 1e19, 3e38, np.inf, np.nan], 2)
        grads = {
            name: jnp.asarray(rng.choice([-1.0, 1.0], shape) * size, jnp.float32)
            for size, (name, shape) in zip(sizes, SHAPES.items(), strict=True)
        }
        before = int(state.skipped_steps)
        updates, state = update(grads, state, PARAMS)
        if int(state.skipped_steps) > before:
            assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(updates))
        assert finite((updates, state.slow, state.average))
