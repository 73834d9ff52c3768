"""A phase's transform gives a direction; one with a learning rate of its own is refused."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo

PARAMS = {"w": jnp.ones(2)}
OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-1),
    "sgd": lambda: optax.sgd(1.0),
    "muon": lambda: optax.contrib.muon(1e-2),
    "warm-up from zero": lambda: optax.adam(optax.linear_schedule(0.0, 1e-3, 100)),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "kronecker_fisher": lambda: fgo.kronecker_fisher(1e-2),
    "target_acquisition": lambda: fgo.target_acquisition(1e-2),
}
DIRECTIONS = {
    "adam": optax.scale_by_adam,
    "identity": optax.identity,
    "momentum": lambda: optax.trace(0.9),
    "lion": optax.scale_by_lion,
    "noise": lambda: optax.chain(optax.add_noise(1.0, 0.5, 0), optax.scale_by_adam()),
    "a stranger's shapes": lambda: optax.masked(optax.scale_by_adam(), {"w": True}),
    "the default": lambda: fgo.scale_by_kronecker_fisher(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_as_a_transform_is_refused(name):
    with pytest.raises(ValueError, match=r"'acquisition' points against the gradient"):
        fgo.target_acquisition(1e-2, transform=OPTIMIZERS[name]()).init(PARAMS)


def test_every_phase_and_both_front_doors_are_checked():
    with pytest.raises(ValueError, match="'execution' points against"):
        fgo.target_acquisition(1e-2, transform={"execution": optax.adam(0.1)}).init(PARAMS)
    phase = fgo.Phase("constant", lambda _: jnp.float32(0.1), optax.sgd(1.0))
    with pytest.raises(ValueError, match="'constant' points against"):
        fgo.phased([phase], []).init(PARAMS)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_pass(name):
    fgo.target_acquisition(1e-2, transform=DIRECTIONS[name]()).init(PARAMS)


def test_a_transform_that_needs_more_than_gradients_passes_and_keeps_its_own_error():
    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda g: -factor * g, updates), state

    needs = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = fgo.phased([fgo.acquisition(1.0, transform=needs)], [])
    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match="factor"):
        tx.update(params, tx.init(params), params)


def test_the_check_works_inside_jit_and_leaves_traced_numbers_alone():
    @jax.jit
    def first_update(rate, b1):
        traced = fgo.acquisition(rate, transform=optax.scale_by_adam(b1=b1))
        tx = fgo.phased([traced], [])
        params = {"w": jnp.ones(2)}
        return tx.update(params, tx.init(params), params)[0]["w"]

    assert (first_update(0.1, 0.9) < 0).all()

    @jax.jit
    def refused(rate):
        return fgo.phased([fgo.acquisition(rate, transform=optax.adam(0.1))], []).init(jnp.ones(2))

    with pytest.raises(ValueError, match="points against the gradient"):
        refused(0.1)


def test_under_inject_hyperparams_it_is_refused_too():
    make = optax.inject_hyperparams(fgo.target_acquisition, static_args=fgo.STATIC_ARGS)
    tx = make(learning_rate=1e-2, transform=optax.adam(0.1))
    with pytest.raises(ValueError, match="points against the gradient"):
        tx.init({"w": jnp.ones(2)})
