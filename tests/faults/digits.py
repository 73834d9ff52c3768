"""Handwritten digits under a small network, with whatever damage to each step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

MODEL = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(10)])
BATCH = 32
LEAVES = 4  # two layers with kernel and bias each


class Damage(NamedTuple):
    """What each step is given; one entry for each step in front."""

    images: np.ndarray  # [steps, batch, 64]
    labels: np.ndarray  # [steps, batch]
    factors: np.ndarray  # [steps, leaves]; the gradient of each leaf is multiplied by it
    loss_factor: np.ndarray  # [steps]; and so is the reported loss

    @property
    def steps(self):
        return len(self.labels)


@functools.cache
def _data():
    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)


def whole(steps, seed=0):
    """No damage."""
    images, labels = _data()
    chosen = np.random.default_rng(seed).integers(0, len(labels), (steps, BATCH))
    factors = np.ones((steps, LEAVES), np.float32)
    return Damage(images[chosen], labels[chosen], factors, np.ones(steps, np.float32))


def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 64)))["params"]


def loss(params, images, labels):
    logits = MODEL.apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def trainer(make):
    """A compiled function of a rate, a damage and perhaps a state.

    It returns final parameters, final state, the losses and the number of skipped steps so far.
    """

    @jax.jit
    def train(rate, damage, carry=None):
        tx = optax.with_extra_args_support(make(rate))

        def step(carry, given):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, given.images, given.labels)
            leaves, structure = jax.tree.flatten(grads)
            spoilt = [leaf * given.factors[i] for i, leaf in enumerate(leaves)]
            updates, state = tx.update(
                jax.tree.unflatten(structure, spoilt), state, params,
                value=value * given.loss_factor,
            )  # fmt: skip
            return (optax.apply_updates(params, updates), state), (value, state.skipped_steps)

        start = (params(), tx.init(params())) if carry is None else carry
        (last, state), (losses, skipped) = jax.lax.scan(step, start, damage)
        return last, state, losses, skipped

    return train


def finite(tree):
    """Whether every number is finite; NaN that stands for not measured is one that is not."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(np.isfinite(np.asarray(x, np.float32)).all() for x in floats)
