"""A learning rate a thousand times too large for one step, on real digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from fgo_jax.precondition import clip_by_softmax_radius, scale_by_friction_limit

STEPS, SPIKE, TRAIN = 200, 50, 1397


def predict(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["w"] + params["b"])
    return hidden @ params["v"] + params["c"]


def loss(params, batch):
    logits = predict(params, batch)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def rate(t):
    return jnp.where(t == SPIKE, 3.0, 3e-3)


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])


@functools.partial(jax.jit, static_argnums=0)
def accuracy(tx, seed, x, y):
    """Of the 400 held-out digits after all steps."""
    tx = optax.with_extra_args_support(tx)
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "w": jax.random.normal(keys[0], (64, 64)) / 8,
        "b": jnp.zeros(64),
        "v": jax.random.normal(keys[1], (64, 10)) / 8,
        "c": jnp.zeros(10),
    }

    def step(carry, t):
        params, state = carry
        rows = jax.random.choice(jax.random.fold_in(keys[2], t), TRAIN, (64,))
        batch = {"x": x[rows], "y": y[rows]}
        grads = jax.grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, batch=batch, grad=grads)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(STEPS))
    return jnp.mean(predict(params, {"x": x[TRAIN:]}).argmax(-1) == y[TRAIN:])


def spiked(limit):
    return optax.chain(optax.adam(rate), limit)


UNSPIKED = optax.adam(3e-3)
CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
LIMITED = {
    # At its default cadence it measures at the spike; at 20, ten steps before and after.
    "radius": spiked(clip_by_softmax_radius(predict)),
    "radius between measurements": spiked(clip_by_softmax_radius(predict, every=20)),
    "friction": spiked(scale_by_friction_limit(predict, every=20)),
}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_limits_survive_a_spike_where_clipping_by_the_global_norm_does_not(seed):
    unspiked = accuracy(UNSPIKED, seed, *digits())
    # Three runs on 400 digits lost 4.5 to 10 points; within one point is four digits.
    assert accuracy(CLIPPED, seed, *digits()) < unspiked - 0.03
    for name, tx in LIMITED.items():
        assert accuracy(tx, seed, *digits()) > unspiked - 0.01, name
