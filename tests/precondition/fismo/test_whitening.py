"""Factors and inverse roots of one step, against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.precondition.fismo import whitening
from fgo_jax.precondition.fismo.matrices import matrices
from fgo_jax.precondition.shared.modes import Modes

ROWS, COLUMNS = 3, 4
ONE = matrices(jnp.ones((ROWS, COLUMNS)), [Modes((ROWS, COLUMNS), ((0,), (1,)))], 1024)[0]
DECAY, DAMPING = 0.75, 0.5
EPS = float(jnp.finfo(jnp.float32).eps)


@jax.jit
def next_rows(factor, x):
    return whitening.next_factor(factor, ONE, x, 0, DECAY, DAMPING)


@jax.jit
def inverse_root(factor):
    return whitening.inverse_roots([factor])[0]


def spread(seed, size):
    """A symmetric matrix of trace `size`, as factors are."""
    root = np.random.default_rng(seed).standard_normal((size, size))
    matrix = root @ root.T + 0.1 * np.eye(size)
    return matrix * size / np.trace(matrix)


def next_by_definition(factor, x):
    d, others = x.shape
    gram = x @ x.T / others
    gram = gram / max(np.trace(gram) / d, 1.0) + DAMPING * np.trace(factor) / d * np.eye(d)
    new = DECAY * factor + (1 - DECAY) * gram
    return new * d / np.trace(new)


def root_by_definition(factor):
    values, vectors = np.linalg.eigh(factor)
    return vectors / np.sqrt(values) @ vectors.T


@pytest.mark.parametrize("size", [0.1, 1.0, 1e3])
def test_a_factor_moves_by_a_damped_gradient_of_at_most_its_own_trace(size):
    factor = spread(0, ROWS)
    x = size * np.random.default_rng(1).standard_normal((ROWS, COLUMNS))
    found = next_rows(jnp.float32(factor), jnp.float32(x))
    np.testing.assert_allclose(found, next_by_definition(factor, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [1e25, np.inf])
def test_a_gradient_beyond_squares_leaves_the_factor(bad):
    factor = jnp.float32(spread(0, ROWS))
    found = next_rows(factor, jnp.full((ROWS, COLUMNS), bad))
    np.testing.assert_array_equal(found, factor)


def test_a_root_takes_eigenvalues_below_rounding_for_rounding():
    values = np.array([2.0, 1e-2, 1e-12, 0.0])
    basis = np.linalg.qr(np.random.default_rng(2).standard_normal((4, 4)))[0]
    exact = inverse_root(jnp.float32(np.diag(values)))
    least = 4 * EPS * 2.0
    wanted = np.diag(1 / np.sqrt(np.maximum(values, least)))
    np.testing.assert_allclose(exact, wanted, rtol=1e-5, atol=1e-3)
    # In any other basis the same rounding must not be raised either.
    turned = inverse_root(jnp.float32(basis * values @ basis.T))
    assert np.linalg.norm(turned, 2) <= 1.001 / np.sqrt(least)


@pytest.mark.parametrize("due", [False, True])
def test_each_side_is_whitened_by_the_other_sides_newest_root(due):
    rng = np.random.default_rng(3)
    g = rng.standard_normal((ROWS, COLUMNS))
    p, q = spread(4, ROWS), spread(5, COLUMNS)
    old_p, old_q = root_by_definition(spread(6, ROWS)), root_by_definition(spread(7, COLUMNS))

    @jax.jit
    def step(g, factors, roots):
        return whitening.whitened(
            [ONE], [g], [jnp.array([[True]])], ([factors], [roots]),
            decay=DECAY, damping=DAMPING, due=jnp.asarray(due),
        )  # fmt: skip

    single = jnp.float32
    ((found,), (roots,)) = step(single(g), (single(p), single(q)), (single(old_p), single(old_q)))
    new_p = next_by_definition(p, g @ old_q)
    root_p = root_by_definition(new_p) if due else old_p
    new_q = next_by_definition(q, (root_p @ g).T)
    root_q = root_by_definition(new_q) if due else old_q
    for have, want in zip((*found, *roots), (new_p, new_q, root_p, root_q), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
