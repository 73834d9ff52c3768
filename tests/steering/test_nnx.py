"""Reading and steering the state of an `nnx.Optimizer`, whose leaves are variables."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fgo_jax as fgo

# Quick to compile, and once for all tests: nothing here is about the transform.
TX = fgo.target_acquisition(1e-2, 5, transform=optax.scale_by_adam(), average_weights=0.5)


def loss(model):
    return jnp.square(model(jnp.ones((2, 3)))).sum()


@pytest.fixture
def trained():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(loss)(model))
    return model, optimizer


def test_reading(trained):
    _, optimizer = trained
    told = fgo.telemetry(optimizer.opt_state)
    assert int(told["total_step"]) == 2
    assert all(isinstance(number, jax.Array) for number in told.values())
    assert not bool(fgo.should_stop(optimizer.opt_state))
    assert fgo.explain(optimizer.opt_state).startswith("In acquisition since step 0; now at step 2")


def test_the_average_comes_as_the_parameters_do(trained):
    model, optimizer = trained
    params = nnx.state(model, nnx.Param)
    average = fgo.eval_params(optimizer.opt_state, params)
    assert jax.tree.structure(average) == jax.tree.structure(params)
    pure = fgo.eval_params(optimizer.opt_state, nnx.as_pure(params))
    jax.tree.map(np.testing.assert_array_equal, nnx.as_pure(average), pure)
    assert not np.array_equal(pure["kernel"], nnx.as_pure(params)["kernel"])
    nnx.update(model, average)  # so it can be validated


@pytest.mark.parametrize("compiled", [False, True])
def test_steering_leaves_a_state_that_the_next_update_takes(trained, compiled):
    model, optimizer = trained

    def update(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    step = nnx.jit(update) if compiled else update
    before = jax.tree.structure(optimizer.opt_state)
    optimizer.opt_state = fgo.force_phase(optimizer.opt_state, "reask")
    assert jax.tree.structure(optimizer.opt_state) == before
    step(model, optimizer)
    step(model, optimizer)
    told = fgo.telemetry(optimizer.opt_state)
    assert (int(told["phase"]), int(told["started/reask"])) == (1, 3)
    optimizer.opt_state = fgo.restart(optimizer.opt_state)
    step(model, optimizer)
    told = fgo.telemetry(optimizer.opt_state)
    assert (int(told["phase"]), int(told["total_step"])) == (0, 1)
