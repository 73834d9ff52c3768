"""Metrics of states that are known: applied twice, each is the step without its momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax import precondition

UNSEEN = {
    "kronecker": precondition.scale_by_kronecker_fisher,
    "a natural gradient": lambda: precondition.scale_by_kronecker_fisher(power=1.0),
    "a mild one": lambda: precondition.scale_by_kronecker_fisher(power=0.25, eps=1e-6),
    "of one size": lambda: precondition.scale_by_kronecker_fisher(power=0.0, eps=1e-3),
    "of noise alone": lambda: precondition.scale_by_kronecker_fisher(centred=True),
    "shampoo": lambda: precondition.scale_by_kronecker_fisher(corrected=False),
    "fismo": precondition.scale_by_fismo,
    "mousse": precondition.scale_by_mousse,
    "diagonal": lambda: precondition.scale_by_diagonal_fisher(
        operator=lambda params, batch: lambda vector: jax.tree.map(jnp.zeros_like, vector)
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_leaf_without_a_gradient_so_far_keeps_the_identity(name):
    # Behind a head of zeros. Else its first gradient would be multiplied by one over the root of
    # eps, and the probe would see that leaf alone.
    transform = UNSEEN[name]()
    g = {"matrix": jnp.zeros((3, 4)), "vector": jnp.zeros(3), "other": jnp.ones((2, 4))}
    _, state = jax.jit(transform.update)(g, transform.init(g), g, batch=None)
    ones = jax.tree.map(jnp.ones_like, g)
    for leaf in ("matrix", "vector"):
        np.testing.assert_array_equal(transform.metric(ones, state)[leaf], ones[leaf])


def test_of_a_low_rank_fisher_twice_it_damps_by_the_gain():
    transform = fgo.precondition.scale_by_low_rank_fisher(
        lambda params, batch: lambda vector: vector, rank=2, num_steps=2
    )
    state = transform.init(jnp.zeros(3))
    # Along the first axis the eigenvalue is 6, along the second none is known.
    state = state._replace(
        eigenvalues=jnp.float32([6.0, 0.0]),
        rho=jnp.float32(2.0),
        eigenvectors=(jnp.eye(3)[:2] * jnp.float32([[1.0], [0.0]]),),
    )
    metric = jax.jit(transform.metric)
    found = metric(metric(jnp.float32([4.0, 5.0, 6.0]), state), state)
    np.testing.assert_allclose(found, [1.0, 5.0, 6.0], rtol=1e-6)


def test_of_a_diagonal_fisher_it_divides_by_the_root_of_the_larger_of_two():
    transform = fgo.precondition.scale_by_diagonal_fisher(
        operator=lambda params, batch: lambda vector: vector, b1=0.5, gamma=0.5
    )
    state = transform.init(jnp.zeros(2))
    g = jnp.float32([6.0, 6.0])
    np.testing.assert_array_equal(transform.metric(g, state), g)
    # After two steps the momentum is unbiased by 1 - 0.25.
    state = state._replace(
        fisher_step=jnp.int32(2),
        first_moment=jnp.float32([-3.0, 0.75]),
        diagonal=jnp.float32([2.0, 8.0]),
    )
    np.testing.assert_allclose(transform.metric(g, state), [3.0, 3.0], rtol=1e-6)


def test_the_diagonal_is_unbiased_over_refreshes_and_no_entry_exceeds_one():
    curvatures = [jnp.float32([1.0, 4.0]), jnp.float32([3.0, 2.0])]
    transform = fgo.precondition.scale_by_diagonal_fisher(
        operator=lambda params, batch: lambda vector: batch * vector, every=1, b2=0.75, gamma=1.0
    )
    params, g = jnp.zeros(2), jnp.float32([2.0, 9.0])
    state, update = transform.init(params), jax.jit(transform.update)
    for number, curvature in enumerate(curvatures, 1):
        found, state = update(g, state, params, batch=curvature)
        weights = 0.75 ** np.arange(number)[::-1]
        mean = np.average(curvatures[:number], axis=0, weights=weights)
        np.testing.assert_allclose(state.diagonal, mean, rtol=1e-6)
        np.testing.assert_allclose(found, g / np.maximum(mean, np.abs(g)), rtol=1e-6)
