"""Numbers of a spectrum against NumPy, and Gram sums against sums over distinct rows."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax import linalg

# Compiled: quicker than op by op, and what the probes do.
participation_ratio = jax.jit(linalg.participation_ratio)
energy_rank = jax.jit(linalg.energy_rank, static_argnums=1)
entropy_rank = jax.jit(linalg.entropy_rank)
uncentred_sums = jax.jit(linalg.uncentred_sums)
centred_sums = jax.jit(linalg.centred_sums)

DECAY = 25.3 / 27.3  # a geometric spectrum with participation ratio (1 + r) / (1 - r) = 26.3
EIGENVALUES = DECAY ** jnp.arange(150)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gram_matrices(rows, draws, mean):
    """Gram matrices of Gaussian rows with the covariance diag(EIGENVALUES)."""
    shape = (draws, rows, EIGENVALUES.size)
    samples = jax.random.normal(jax.random.key(0), shape) * jnp.sqrt(EIGENVALUES) + mean
    return jnp.einsum("sid,sjd->sij", samples, samples)


def test_participation_ratio():
    assert float(participation_ratio(jnp.array([3.0] * 7 + [0.0] * 5))) == pytest.approx(7)
    np.testing.assert_allclose(participation_ratio(EIGENVALUES), 26.3, rtol=1e-4)
    # Squares of 1e-30 are zero in float32.
    np.testing.assert_allclose(participation_ratio(1e-30 * EIGENVALUES), 26.3, rtol=1e-4)
    assert np.isnan(participation_ratio(jnp.zeros(3)))
    assert participation_ratio(jnp.ones((2, 5, 4))).shape == (2, 5)


def test_energy_rank_against_numpy():
    values = np.random.default_rng(0).exponential(size=(20, 40)) ** 3
    ordered = -np.sort(-values, axis=1)
    held = np.cumsum(ordered, axis=1) / values.sum(1, keepdims=True)
    expected = (held < 0.8).sum(1) + 1
    np.testing.assert_array_equal(energy_rank(jnp.array(values), 0.8), expected)


def test_energy_rank_at_an_exact_share_and_at_the_edges():
    assert float(energy_rank(jnp.ones(10), 0.9)) == 9
    # The float32 next to 0.6 is above it: fifty times that is above thirty.
    assert float(energy_rank(jnp.ones(50), 0.6)) == 30
    assert float(energy_rank(jnp.ones(1000) / 3, 1.0)) == 1000
    assert float(energy_rank(jnp.array([5.0, -1e-6, 0.0]), 0.9)) == 1
    assert np.isnan(energy_rank(jnp.zeros(3), 0.9))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        energy_rank(jnp.ones(3), 1.5)


def test_entropy_rank():
    np.testing.assert_allclose(entropy_rank(jnp.array([4.0] * 6 + [0.0])), 6, rtol=1e-6)
    p = np.asarray(EIGENVALUES / EIGENVALUES.sum(), np.float64)
    expected = np.exp(-np.sum(p * np.log(p)))
    np.testing.assert_allclose(entropy_rank(EIGENVALUES), expected, rtol=1e-5)
    assert np.isnan(entropy_rank(jnp.zeros(3)))


def test_uncentred_sums_are_means_over_distinct_pairs():
    rows = np.random.default_rng(1).normal(size=(6, 3))
    pairs = list(itertools.permutations(range(6), 2))
    numerator = np.mean([rows[i] @ rows[i] * (rows[j] @ rows[j]) for i, j in pairs])
    denominator = np.mean([(rows[i] @ rows[j]) ** 2 for i, j in pairs])
    sums = uncentred_sums(jnp.array(rows @ rows.T))
    np.testing.assert_allclose(sums, (numerator, denominator), rtol=1e-5)


def test_centred_sums_are_means_over_distinct_quadruples():
    rows = np.random.default_rng(2).normal(size=(6, 3)) + 1.0
    a, b = [], []
    for i, j, k, m in itertools.permutations(range(6), 4):
        d, e = rows[i] - rows[j], rows[k] - rows[m]  # independent, covariance 2 C each
        a.append(d @ d * (e @ e) / 4)
        b.append((d @ e) ** 2 / 4)
    sums = centred_sums(jnp.array(rows @ rows.T))
    np.testing.assert_allclose(sums, (np.mean(a), np.mean(b)), rtol=1e-5)


def test_centred_sums_agree_with_the_nine_sums_of_the_uncentred_matrix():
    rows = np.random.default_rng(3).normal(size=(9, 5)) + 0.5
    k = rows @ rows.T
    d, r, n = np.diag(k), k.sum(1), 9
    t1, t2, t3, t5 = (k**2).sum(), (d**2).sum(), (k @ d).sum(), (r**2).sum()
    t6, t7, t9 = d.sum() ** 2, d.sum() * k.sum(), k.sum() ** 2
    c = (n - 1) * (n - 2)
    a = t6 - 2 * t7 / (n - 1) + (4 * t3 - n * t2) / (n - 2) + (t9 - 4 * t5 + 2 * t1 - t6) / c
    b = t1 - n * t2 / (n - 2) + 2 * (2 * t3 - t5) / (n - 2) + (t6 - 2 * t7 + t9) / c
    expected = np.array([a, b]) / (n * (n - 3))
    np.testing.assert_allclose(centred_sums(jnp.array(k)), expected, rtol=1e-4)


def test_centred_sums_survive_a_mean_far_above_the_noise():
    plain = centred_sums(gram_matrices(12, 1, 0.0)[0])
    shifted = centred_sums(gram_matrices(12, 1, 3.0)[0])
    # |mean|^2 is 1350 times 12 in the Gram matrix, so 1e-7 of it is 1e-4 of the noise's 27.
    np.testing.assert_allclose(shifted, plain, rtol=2e-3)


def test_ratios_of_averages_are_unbiased_where_the_naive_ratio_is_not():
    # sd(B) / B is below .7 at 12 rows, so 1500 draws have a standard error below 2 %.
    grams = gram_matrices(12, 1500, 0.3)
    numerator, denominator = jax.jit(jax.vmap(centred_sums))(grams)
    assert float(numerator.mean() / denominator.mean()) == pytest.approx(26.3, rel=0.05)
    centring = np.eye(12) - 1 / 12
    eigenvalues = np.linalg.eigvalsh(centring @ np.asarray(grams[:50]) @ centring)
    assert float(participation_ratio(eigenvalues).mean()) < 0.4 * 26.3

    numerator, denominator = jax.jit(jax.vmap(uncentred_sums))(gram_matrices(12, 1500, 0.0))
    assert float(numerator.mean() / denominator.mean()) == pytest.approx(26.3, rel=0.05)
    trace = float(EIGENVALUES.sum())
    assert float(numerator.mean()) == pytest.approx(trace**2, rel=0.02)


def test_jackknife_error_is_the_spread_over_draws():
    grams = gram_matrices(24, 200, 0.0)
    numerator, denominator = jax.jit(jax.vmap(uncentred_sums))(grams)
    spread = float(jnp.std(jnp.log(numerator / denominator)))
    errors = jax.jit(jax.vmap(lambda k: linalg.jackknife_log_ratio(k, uncentred_sums)))(grams[:50])
    # The jackknife errs upwards (Efron and Stein); 200 draws know the spread to 5 %.
    assert 0.9 * spread < float(jnp.sqrt(jnp.mean(errors**2))) < 1.4 * spread


def test_jackknife_says_when_it_knows_nothing():
    assert np.isnan(jax.jit(linalg.jackknife_log_ratio)(jnp.eye(6)))


def test_errors():
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        centred_sums(jnp.eye(3))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        uncentred_sums(jnp.eye(1))
    with pytest.raises(ValueError, match=r"shape \[n, n\], got \(3, 2\)"):
        centred_sums(jnp.ones((3, 2)))


def test_jits_under_strict_promotion():
    gram = gram_matrices(12, 1, 0.0)[0].astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert centred_sums(gram)[0].dtype == jnp.float32
        assert uncentred_sums(gram)[1].dtype == jnp.float32
        assert jax.eval_shape(linalg.jackknife_log_ratio, gram).dtype == jnp.float32
        for summary in (energy_rank, participation_ratio, entropy_rank):
            assert summary(gram).dtype == jnp.float32
