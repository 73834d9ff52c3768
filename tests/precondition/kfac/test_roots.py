"""Factors, their roots and the length of an update, against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.precondition.kfac import estimate, roots
from fgo_jax.precondition.kfac.layers import Diagonal, Layer, Layout
from fgo_jax.precondition.kfac.refresh import Cadence
from fgo_jax.precondition.kfac.transform import shortened

EPS = float(jnp.finfo(jnp.float32).eps)
TIED = Layer("tied", "embed", 0, None, (), (3,), (4,))
DENSE = Layer("dense", "linear", 0, None, (), (3,), (4,))


def spread(seed, size, scale=1.0):
    root = np.random.default_rng(seed).standard_normal((size, size))
    return scale * (root @ root.T + 0.1 * np.eye(size))


def test_merged_terms_keep_the_partial_traces_of_their_sum():
    # A layer that is used twice: one term far larger on the left, one on the right.
    lefts = [spread(0, 3, 100.0), spread(1, 3)]
    rights = [spread(2, 4), spread(3, 4, 7.0)]
    terms = tuple(zip(map(jnp.float32, lefts), map(jnp.float32, rights), strict=True))
    left, right = jax.jit(lambda terms: roots.merged(TIED, terms))(terms)
    wanted_left = sum(np.trace(y) * x for x, y in zip(lefts, rights, strict=True))
    wanted_right = sum(np.trace(x) * y for x, y in zip(lefts, rights, strict=True))
    np.testing.assert_allclose(left * np.trace(right), wanted_left, rtol=1e-5)
    np.testing.assert_allclose(right * np.trace(left), wanted_right, rtol=1e-5)


def test_merged_terms_of_diagonals_and_zeros():
    lefts = [np.array([1.0, 2.0, 3.0]), np.zeros(3)]
    rights = [spread(4, 4), np.zeros((4, 4))]
    terms = tuple(zip(map(jnp.float32, lefts), map(jnp.float32, rights), strict=True))
    left, right = roots.merged(TIED, terms)
    np.testing.assert_allclose(
        np.multiply.outer(left, right), np.multiply.outer(lefts[0], rights[0]), rtol=1e-5
    )
    zeros = roots.merged(TIED, (terms[1], terms[1]))
    assert not any(np.any(side) for side in zeros)


def test_a_root_without_damping_takes_no_rounding_for_an_eigenvalue():
    values = jnp.float32([1e-12, 0.5, 2.0])
    found = roots.inverse_root(values, jnp.eye(3), jnp.float32(0.0))
    wanted = np.diag(1 / np.sqrt([2.0 * EPS, 0.5, 2.0]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    diagonal = roots.inverse_root(values, None, jnp.float32(0.0))
    np.testing.assert_allclose(diagonal, np.diagonal(wanted), rtol=1e-5)


def test_no_eigenvalue_of_a_factor_is_negative():
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
    rounded = jnp.float32(basis * [1.0, 0.5, -1e-3] @ basis.T)
    ((values, vectors),) = roots.spectra([(DENSE, rounded)])
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-6)


def test_each_factor_is_damped_by_the_root_of_the_damping_in_units_of_its_mean():
    left, right, square = spread(6, 3, 5.0), spread(7, 4, 0.1), np.array([4.0, 1.0, 0.25, 0.75])
    plan = Layout((DENSE,), (Diagonal("scale", 1, None),))
    counts = (jnp.int32(1), jnp.int32(1))
    factors = (((jnp.float32(left), jnp.float32(right)),), jnp.float32(square))
    damping = 0.09
    (pair, diagonal) = jax.jit(lambda f: roots.invert(plan, f, counts, damping))(factors)
    for root, factor in zip(pair, (left, right), strict=True):
        inverse = np.float64(root) @ np.float64(root)
        damped = factor + 0.3 * np.trace(factor) / len(factor) * np.eye(len(factor))
        np.testing.assert_allclose(inverse @ damped, np.eye(len(factor)), atol=1e-4)
    np.testing.assert_allclose(diagonal, (square + 0.09 * square.mean()) ** -0.5, rtol=1e-5)


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_an_update_is_shortened_to_its_limit_and_never_lengthened(size):
    rng = np.random.default_rng(8)
    grads = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    updates = [size * g for g in grads]
    total = sum((g * u).sum() for g, u in zip(grads, updates, strict=True))
    found = shortened([jnp.float32(u) for u in updates], [jnp.float32(g) for g in grads], 4.0)
    scale = min(1.0, np.sqrt(4.0 / total))
    for have, want in zip(found, updates, strict=True):
        np.testing.assert_allclose(have, scale * want, rtol=1e-5)


def test_a_layer_that_is_not_finite_neither_moves_nor_shortens_the_others():
    grads = [jnp.ones(2), jnp.ones(3)]
    found = shortened([jnp.float32([jnp.inf, 1.0]), jnp.ones(3)], grads, 4.0)
    np.testing.assert_array_equal(found[0], 0.0)
    np.testing.assert_array_equal(found[1], 1.0)


def test_the_average_is_unbiased_from_the_first_estimate_on_and_skips_bad_ones():
    decay, items = 0.75, [4.0, np.inf, 8.0, 1.0]
    counts, means = (jnp.int32(0),), (jnp.zeros(2),)
    for item in items:
        found = [(jnp.full(2, item), jnp.asarray(bool(np.isfinite(item))))]
        counts, means = estimate.averaged(found, counts, means, jnp.float32(decay))
    good = [item for item in items if np.isfinite(item)]
    wanted = np.average(good, weights=decay ** np.arange(len(good))[::-1])
    assert int(counts[0]) == len(good)
    np.testing.assert_allclose(means[0], wanted, rtol=1e-6)


def test_everything_is_due_in_the_burn_in_and_by_its_cadence_afterwards():
    cadence = Cadence(factors_every=1, refresh_every=4, burn_in=3)
    due = [bool(cadence.due(4, jnp.int32(step))) for step in range(10)]
    assert [step for step, now in enumerate(due) if now] == [0, 1, 2, 4, 8]
