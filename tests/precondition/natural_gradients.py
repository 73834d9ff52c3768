"""Every natural gradient on one small network, for what all of them have to withstand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import fgo_jax as fgo
from tests import draws


class Network(nn.Module):
    """Two layers of one shape, which share a stack: half of the loops to compile."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x) * nn.tanh(nn.Dense(4)(x))


def predict(params, batch):
    return Network().apply({"params": params}, batch)


BATCH = draws.normal(16, 6)
PARAMS = draws.params(Network(), BATCH)
CURVATURE = fgo.curvature.ggn(predict)

MAKERS = {
    "kronecker": fgo.scale_by_kronecker_fisher,
    "kronecker, power 1": functools.partial(fgo.scale_by_kronecker_fisher, power=1.0),
    "kronecker, centred": functools.partial(
        fgo.scale_by_kronecker_fisher, power=1.0, centred=True, vector_factors=True
    ),
    "shampoo": functools.partial(fgo.scale_by_kronecker_fisher, corrected=False),
    "shampoo, power 1/4": functools.partial(
        fgo.scale_by_kronecker_fisher, corrected=False, power=0.25
    ),
    "fismo": fgo.scale_by_fismo,
    "fismo, unit": functools.partial(fgo.scale_by_fismo, unit_gradients=True),
    "mousse": fgo.scale_by_mousse,
    "kfac": functools.partial(fgo.scale_by_kfac, predict),
    "kfac, averaged": functools.partial(fgo.scale_by_kfac, predict, b1=0.9, norm_constraint=None),
    "diagonal": functools.partial(fgo.scale_by_diagonal_fisher, predict),
    "low rank": functools.partial(fgo.scale_by_low_rank_fisher, CURVATURE, rank=3, num_steps=6),
    "graft": lambda: fgo.graft(optax.scale_by_adam(), optax.trace(0.9)),
    "graft on kronecker": lambda: fgo.graft(optax.scale_by_adam(), fgo.scale_by_kronecker_fisher()),
}


def like_params(make, dtype=jnp.float32):
    """A tree shaped like the parameters, each leaf made from its shape."""
    return jax.tree.map(lambda p: jnp.asarray(make(p.shape), dtype), PARAMS)


@functools.cache
def random_gradients(steps, seed=0):
    rng = np.random.default_rng(seed)
    mean = like_params(lambda s: rng.normal(size=s))
    noise = [like_params(lambda s: rng.normal(size=s)) for _ in range(steps)]
    return [jax.tree.map(lambda m, x: 0.3 * m + x, mean, tree) for tree in noise]


@functools.cache
def compiled(name):
    """(init, update) of one of the `MAKERS`, traced and compiled once for all tests of a dtype."""
    return programs(MAKERS[name]())


def programs(transform):
    return transform.init, jax.jit(optax.with_extra_args_support(transform).update)


def run(transform, grads, params=PARAMS, batch=BATCH):
    """All updates of a sequence of gradient trees, and all states.

    Args:
      transform: one of its own, or the name of one of the `MAKERS`.
    """
    init, update = compiled(transform) if isinstance(transform, str) else programs(transform)
    state = init(params)
    updates, states = [], []
    for g in grads:
        u, state = update(g, state, params, batch=batch)
        updates.append(u)
        states.append(state)
    return updates, states


def finite(tree):
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return all(np.isfinite(x).all() for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))
