"""A transformation whose directions are known: a sum of gradients, twice as long at every step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import fgo_jax as fgo


class Doubling(NamedTuple):
    count: jax.Array  # [], int32; updates made
    total: jax.Array  # shaped like the one leaf; keep times the last total, plus the gradient

    @classmethod
    def made(cls, keep, stretch=2.0, metric=None, keeps_scale=True):
        def init(params):
            return cls(jnp.zeros([], jnp.int32), jnp.zeros_like(params))

        def update(grads, state, params=None, **extras):
            del params, extras
            total = keep * state.total + grads
            long = jnp.float32(stretch) ** state.count.astype(jnp.float32)
            return total * long, cls(state.count + 1, total)

        if metric is None:
            return optax.GradientTransformationExtraArgs(init, update)
        return fgo.precondition.Preconditioner(init, update, metric, keeps_scale)
