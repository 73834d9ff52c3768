"""A small model with every kind of leaf that K-FAC treats in its own way."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fgo_jax as fgo


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(jnp.tanh(nn.Dense(4)(x)))
        self.param("unread", nn.initializers.ones, (3,))
        return nn.Dense(3)(x)


def predict(params, batch):
    return Net().apply({"params": params}, batch)


@functools.cache
def problem(dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (8, 5), dtype)
    params = jax.jit(Net().init)(jax.random.key(1), x)["params"]
    return jax.tree.map(lambda p: p.astype(dtype), params), x


def make(**kwargs):
    return fgo.scale_by_kfac(predict, **{"diagonal": "unread", "burn_in": 2} | kwargs)


def finite(tree):
    return all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(tree))
