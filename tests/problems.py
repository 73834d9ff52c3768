"""Small training problems that several tests share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax


def mlp_params(key=0, width=16):
    keys = jax.random.split(jax.random.key(key), 2)
    return {
        "hidden": {
            "kernel": jax.random.normal(keys[0], (8, width)) / 8**0.5,
            "bias": jnp.zeros(width),
        },
        "out": {"kernel": jax.random.normal(keys[1], (width, 3)) / width**0.5},
    }


def mlp(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"]


def mlp_batch(step, size=32):
    """Labels from a fixed linear teacher with label noise: a noise-limited problem."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), step), 2)
    x = jax.random.normal(keys[0], (size, 8))
    teacher = jax.random.normal(jax.random.key(2), (8, 3))
    labels = jnp.argmax(x @ teacher + 2.0 * jax.random.gumbel(keys[1], (size, 3)), -1)
    return {"x": x, "y": labels}


def mlp_loss(params, batch):
    logits = mlp(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


@jax.jit
def mlp_gradient(params, step):
    """Compiled, for loops that are not."""
    return jax.grad(mlp_loss)(params, mlp_batch(step))


def mlp_step(tx, extras=lambda value, batch, step: {"value": value}):
    """A whole training step, for `jax.lax.scan` over step numbers."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, number):
        params, state = carry
        batch = mlp_batch(number)
        value, grads = jax.value_and_grad(mlp_loss)(params, batch)
        updates, state = tx.update(grads, state, params, **extras(value, batch, number))
        return (optax.apply_updates(params, updates), state), value

    return step


def train(tx, steps, **kwargs):
    """Parameters, state and losses after one scan."""
    params = mlp_params()
    run = jax.jit(lambda carry: jax.lax.scan(mlp_step(tx, **kwargs), carry, jnp.arange(steps)))
    (params, state), losses = run((params, tx.init(params)))
    return params, state, losses


def trees_equal(left, right) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
