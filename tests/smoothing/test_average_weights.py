"""Weights for evaluation where an average is of a part of the parameters only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

PARAMS = {"a": {"w": jnp.arange(3.0), "b": jnp.ones(2)}, "c": jnp.full(2, 5.0)}


def trained(tx, steps=4):
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def expected(window):
    """The average of the whole tree, by itself."""
    tx = optax.chain(fgo.average_weights(window), optax.sgd(0.1))
    params, state = trained(tx)
    return params, fgo.eval_params(state, params)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@pytest.mark.parametrize(
    "mask", [{"a": True, "c": False}, {"a": {"w": True, "b": True}, "c": False}]
)
def test_masked_weights_are_returned_as_they_are(mask):
    tx = optax.chain(optax.masked(fgo.average_weights(0.5), mask), optax.sgd(0.1))
    params, state = trained(tx)
    plain, average = expected(0.5)
    found = fgo.eval_params(state, params)
    close(found, {"a": average["a"], "c": plain["c"]})
    assert not np.allclose(found["a"]["w"], params["a"]["w"])


def test_each_part_of_a_partition_has_its_own_average():
    parts = {
        "short": optax.chain(fgo.average_weights(0.5), optax.sgd(0.1)),
        "long": optax.chain(fgo.average_weights(1.0), optax.sgd(0.1)),
    }
    tx = optax.partition(parts, {"a": {"w": "short", "b": "long"}, "c": "short"})
    params, state = trained(tx)
    short, long = expected(0.5)[1], expected(1.0)[1]
    found = fgo.eval_params(state, params)
    close(found, {"a": {"w": short["a"]["w"], "b": long["a"]["b"]}, "c": short["c"]})


@pytest.mark.parametrize("wrapper", [optax.flatten, optax.contrib.split_real_and_imaginary])
def test_outside_a_wrapper_that_changes_the_tree_it_is_that_of_the_weights(wrapper):
    params, state = trained(optax.chain(wrapper(optax.sgd(0.1)), fgo.average_weights(0.5)))
    close(fgo.eval_params(state, params), expected(0.5)[1])


def test_two_averages_of_the_same_weights_are_an_error():
    tx = optax.chain(fgo.average_weights(0.1), fgo.average_weights(0.2), optax.sgd(0.1))
    params, state = trained(tx)
    with pytest.raises(ValueError, match="more than one average of the same weights"):
        fgo.eval_params(state, params)
