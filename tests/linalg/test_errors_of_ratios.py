"""Errors of ratios from Gram matrices, and when an error is not to be trusted."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import roots_genlaguerre

from fgo_jax.linalg import sums
from fgo_jax.linalg.rows import trusted_error, white_noise_rank


@pytest.mark.parametrize("of", [sums.centred_sums, sums.uncentred_sums])
def test_the_jackknife_leaves_out_one_row_at_a_time(of):
    rows = np.random.default_rng(0).standard_normal((6, 8)) * 0.7 ** np.arange(8)
    gram = jnp.float32(rows @ rows.T)
    logs = []
    for out in range(6):
        kept = [row for row in range(6) if row != out]
        numerator, denominator = of(gram[np.ix_(kept, kept)])
        logs.append(np.log(float(numerator)) - np.log(float(denominator)))
    wanted = np.sqrt(5 * np.var(logs))
    assert np.isfinite(wanted)
    np.testing.assert_allclose(sums.jackknife_log_ratio(gram, of), wanted, rtol=1e-3)


def test_a_rank_within_reach_of_its_ceiling_has_no_error():
    ranks = jnp.float32([80.0, 86.0, 100.0])
    np.testing.assert_array_equal(
        trusted_error(ranks, jnp.full(3, 2.0), jnp.float32(100.0)), [2.0, np.inf, np.inf]
    )


@pytest.mark.parametrize(
    ("rows", "dimension", "energy"), [(7, 21, 0.9), (9, 18, 0.9), (14, 42, 0.8), (16, 32, 0.5)]
)
def test_the_rank_of_white_noise_is_that_of_laguerres_roots(rows, dimension, energy):
    roots = roots_genlaguerre(rows, dimension - rows)[0]
    wanted = float(sums.energy_rank(jnp.float32(roots / dimension), energy))
    assert float(white_noise_rank(rows, dimension, energy)) == wanted
