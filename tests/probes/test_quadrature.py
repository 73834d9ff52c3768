"""Lanczos quadrature from its matrices: what several starts say together, and how surely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.linalg.krylov import count_eigenvalues, krylov_space
from fgo_jax.linalg.operator import student_width
from fgo_jax.probes.lanczos import SIGNALS, _summarise

DIMENSION, STARTS, STEPS = 200.0, 3, 6


@pytest.fixture(scope="module")
def starts():
    """Three matrices and couplings of spaces in which nothing has converged."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((STARTS, STEPS, STEPS))
    matrices = roots @ roots.swapaxes(1, 2) + 0.5 * np.eye(STEPS)
    return jnp.float32(matrices), jnp.float32(rng.standard_normal((STARTS, 1, STEPS)))


def test_sums_over_the_counts_are_trace_and_trace_of_the_square(starts):
    counted = jax.jit(count_eigenvalues, static_argnums=2)(*starts, DIMENSION)
    counts, ritz = np.float64(counted.counts), np.float64(counted.ritz)
    np.testing.assert_allclose(counts.sum(1), DIMENSION, rtol=1e-5)
    first, second = (counts * ritz).sum(1), (counts * ritz**2).sum(1)
    values, errors = jax.jit(lambda m, c: _summarise(m, c, DIMENSION, 0.9))(*starts)
    read = dict(zip(SIGNALS, zip(np.asarray(values), np.asarray(errors), strict=True), strict=True))
    width = student_width(STARTS - 1) / STARTS**0.5
    np.testing.assert_allclose(read["trace"], (first.mean(), width * first.std(ddof=1)), rtol=1e-4)
    pairs = [first[i] * first[j] for i in range(STARTS) for j in range(STARTS) if i != j]
    dimension = np.mean(pairs) / second.mean()
    # To first order, from the relative changes of the two means.
    change = 2 * first / first.mean() - second / second.mean()
    wanted = dimension, dimension * width * change.std(ddof=1)
    np.testing.assert_allclose(read["intrinsic_dimension"], wanted, rtol=1e-4)


def test_counts_sum_to_the_dimension_beside_single_eigenvalues():
    # Two outliers that every start has found, and a bulk that none has.
    rng = np.random.default_rng(1)
    matrices, couplings = [], []
    for _ in range(STARTS):
        values = np.array([90.0, 50.0, 3.0, 2.0, 1.5, 1.0])
        vectors = np.linalg.qr(rng.standard_normal((STEPS, STEPS)))[0]
        vectors[0, :2] *= 0.1
        vectors[0] /= np.linalg.norm(vectors[0])
        vectors = np.linalg.qr(vectors.T)[0].T
        # The residual lies on the bulk alone.
        couplings.append(np.array([[0, 0, 1, 1, 1, 1.0]]) @ vectors.T)
        matrices.append(vectors @ np.diag(values) @ vectors.T)
    counted = count_eigenvalues(jnp.float32(matrices), jnp.float32(couplings), DIMENSION)
    assert bool(jnp.all(counted.single[:, :2]))
    np.testing.assert_allclose(counted.counts[:, :2], 1.0)
    np.testing.assert_allclose(jnp.sum(counted.counts, 1), DIMENSION, rtol=1e-5)


def test_a_basis_stays_orthogonal_with_an_eigenvalue_far_above_the_others():
    diagonal = jnp.concatenate([jnp.float32([1e3]), jnp.linspace(0.5, 1.0, 59)])
    start = jax.random.normal(jax.random.key(0), (1, 60))
    space = jax.jit(lambda s: krylov_space(lambda v: diagonal * v, s, 20))(start)
    gram = np.float64(space.basis) @ np.float64(space.basis).T
    np.testing.assert_allclose(gram, np.eye(20), atol=3e-6)
