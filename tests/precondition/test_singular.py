"""Gradients that leave factors singular: updates stay finite and of sensible size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.precondition.natural_gradients import (
    MAKERS,
    PARAMS,
    finite,
    like_params,
    random_gradients,
    rms,
    run,
)

STEPS = 40


def scaled(trees, factor):
    return [jax.tree.map(lambda g: factor * g, tree) for tree in trees]


def one_hot(rng):
    """The gradient of an embedding: one row at a time."""

    def leaf(shape):
        g = np.zeros(shape)
        g[rng.integers(shape[0])] = rng.normal(size=shape[1:])
        return g

    return [like_params(leaf) for _ in range(STEPS)]


def rank_one(rng):
    def leaf(shape):
        g = rng.normal(size=shape[0])
        return np.multiply.outer(g, rng.normal(size=shape[1])) if len(shape) == 2 else g

    return [like_params(leaf)] * 20 + [like_params(leaf) for _ in range(STEPS - 20)]


def ill_conditioned(rng):
    """Singular values from 1 to 1e-12 along fixed directions."""

    def leaf(shape):
        return rng.normal(size=shape) * np.logspace(0, -12, shape[0]).reshape(
            (-1,) + (1,) * (len(shape) - 1)
        )

    return [like_params(leaf) for _ in range(STEPS)]


CASES = {
    "zeros, then large": lambda rng: (
        scaled(random_gradients(50), 0.0) + scaled(random_gradients(STEPS), 1e3)
    ),
    "zeros, then ordinary": lambda rng: scaled(random_gradients(50), 0.0) + random_gradients(STEPS),
    "one-hot": one_hot,
    "rank one": rank_one,
    "condition 1e12": ill_conditioned,
    "times 1e-20": lambda rng: scaled(random_gradients(STEPS), 1e-20),
    "times 1e16": lambda rng: scaled(random_gradients(STEPS), 1e16),
    "times 1e20": lambda rng: scaled(random_gradients(STEPS), 1e20),
    "bfloat16": lambda rng: [
        jax.tree.map(lambda g: g.astype(jnp.bfloat16), tree) for tree in random_gradients(STEPS)
    ],
}
# These are linear in the gradient: their size is relative to it.
LINEAR = ("kronecker, centred", "kfac", "low rank")
# K-FAC's P^-1 is at most 1 / (damping mean(A) mean(G)), with mean(G) about 0.06 for four classes.
BOUND = {"kfac, averaged": 500.0}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_updates_are_finite_and_of_sensible_size(name, case):
    grads = CASES[case](np.random.default_rng(0))
    params = jax.tree.map(lambda p: p.astype(jax.tree.leaves(grads)[0].dtype), PARAMS)
    updates, states = run(name, grads, params)
    assert finite(updates)
    assert finite(states)
    size = 1.0
    if name.startswith(LINEAR):
        largest = [rms(g) for tree in grads for g in jax.tree.leaves(tree)]
        size = max(x for x in largest if x < 1e19) if min(largest) < 1e19 else 1.0
    for tree in updates:
        for u in jax.tree.leaves(tree):
            assert rms(u) <= BOUND.get(name, 20.0) * max(size, 1e-3)
    if case == "times 1e20":
        assert all(rms(u) == 0 for u in jax.tree.leaves(updates))
    elif case != "times 1e-20":
        assert min(rms(u) for u in jax.tree.leaves(updates[-1])) > 0
