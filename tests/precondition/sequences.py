"""Sequences of gradients, and what a transform makes of them."""

import jax
import jax.numpy as jnp
import numpy as np


def gradients(shape, steps, seed):
    """Gradients with an anisotropic covariance along every axis, in no special basis."""
    rng = np.random.default_rng(seed)
    mixers = [rng.normal(size=(d, d)) for d in shape]
    for _ in range(steps):
        g = rng.normal(size=shape)
        for axis, mixer in enumerate(mixers):
            g = np.moveaxis(np.tensordot(mixer, g, axes=(1, axis)), 0, axis)
        yield g


def run(transform, grads):
    """All updates of a sequence of gradient trees, and the last state."""
    state = transform.init(grads[0])
    update = jax.jit(transform.update)
    out = []
    for g in grads:
        u, state = update(g, state)
        out.append(u)
    return out, state


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def run_on_batches(transform, params, grads, batches):
    """All updates and all states at fixed parameters, each leaf with a leading axis of steps."""

    @jax.jit
    def scan(grads, batches):
        def step(state, now):
            updates, state = transform.update(now[0], state, params, batch=now[1])
            return state, (updates, state)

        return jax.lax.scan(step, transform.init(params), (grads, batches))[1]

    return jax.device_get(scan(stacked(grads), stacked(batches)))
