"""Shampoo (`corrected=False`) trains from the first step on, at the learning rate of Adam."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from tests.precondition.sequences import gradients, run

STEPS, RATE = 120, 3e-3


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


class Convolutional(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x.reshape(-1, 8, 8, 1)))
        x = nn.relu(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    return jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)


@functools.cache
def start(network):
    return jax.jit(network.init)(jax.random.key(0), digits()[0][:1])


def with_zero_last_layer(network):
    """All layers but the last have a gradient of zero at the first step."""
    layers = start(network)["params"]
    last = max(layers)
    return {"params": layers | {last: jax.tree.map(jnp.zeros_like, layers[last])}}


NETWORKS = {
    "plain": (Plain(), start),
    "convolutional": (Convolutional(), start),
    "zero last layer": (Plain(), with_zero_last_layer),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def losses(network, power, params, x, y, rows):
    """The loss of every step; of Adam without a power."""
    transform = optax.scale_by_adam()
    if power is not None:
        transform = scale_by_kronecker_fisher(power=power, corrected=False)
    tx = optax.chain(transform, optax.scale_by_learning_rate(RATE))

    def loss(params, rows):
        logits = network.apply(params, x[rows])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]))

    def step(carry, rows):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, rows)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, tx.init(params)), rows)[1]


@functools.cache
def trained(name, power=None):
    """The mean loss of the last 20 steps."""
    network, first = NETWORKS[name]
    x, y = digits()
    rows = jax.random.randint(jax.random.key(1), (STEPS, 64), 0, len(y))
    found = losses(network, power, first(network), x, y, rows)
    assert found[0] < 2.6
    return float(jnp.mean(found[-20:]))


@pytest.mark.parametrize("power", [0.5, 0.25])
@pytest.mark.parametrize("network", NETWORKS)
def test_digits_are_learned_at_the_rate_of_adam(network, power):
    # Adam ends between 0.2 and 0.4, from 2.3.
    assert trained(network, power) < 1.2 * trained(network)


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


@pytest.mark.parametrize("power", [0.5, 0.25, 1.0])
def test_a_first_gradient_of_zero_and_a_spike_give_updates_of_sensible_size(power):
    tx = scale_by_kronecker_fisher(power=power, corrected=False)
    ordinary = [np.asarray(g, np.float32) for g in gradients((6, 8), 30, seed=3)]
    zero = np.zeros((6, 8), np.float32)
    spike = [1e4 * ordinary[25]]
    for grads in (
        [zero, *ordinary],
        [zero] * 50 + ordinary,
        ordinary[:25] + spike + ordinary[26:],
        ordinary[:21] + spike + ordinary[22:],
    ):
        updates, _ = run(tx, grads)
        # Adam's are below 3.
        assert max(map(rms, updates)) < 3.0
        assert rms(updates[-1]) > 1e-5
