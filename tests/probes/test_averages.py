"""Averages of measurements: weights, variances, errors of ratios, and bad draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fgo_jax.linalg import sums
from fgo_jax.probes import gram_averages, hutchinson_averages
from fgo_jax.probes.gram import gram as gram_probe
from fgo_jax.probes.groups import counter
from fgo_jax.probes.hutchinson import _moments
from fgo_jax.probes.probe import ProbeInputs

KEEP = 0.25
DRAWS = 3


def covariances(rng, size):
    mixers = 0.1 * rng.standard_normal((DRAWS, 2, size, size))
    return np.float32(mixers @ mixers.swapaxes(-1, -2))


def averaged(draws):
    """A plain average with weights KEEP^age, and the variance of such an average."""
    weights = (1 - KEEP) * KEEP ** np.arange(DRAWS)[::-1]
    mean = np.tensordot(weights, draws[0], 1) / weights.sum()
    return mean, np.tensordot(weights**2, draws[1], 1) / weights.sum() ** 2


def relative_error(mean, covariance, top, bottom):
    slope = np.zeros_like(mean)
    slope[top], slope[bottom] = 1 / mean[top], -1 / mean[bottom]
    return np.sqrt(slope @ covariance @ slope)


def in_units(accumulate):
    """The function, which also sets the unit that a measurement has."""

    def in_unit(state, unit, *measured):
        unit = jnp.broadcast_to(unit, state.unit.shape)
        return accumulate(state._replace(unit=unit), *measured)

    return jax.jit(in_unit)


@pytest.fixture(scope="module")
def hutchinson():
    return in_units(hutchinson_averages.accumulate)


@pytest.fixture(scope="module")
def gram():
    return in_units(gram_averages.accumulate)


def test_hutchinsons_ratio_has_the_error_of_correlated_averages(hutchinson):
    rng = np.random.default_rng(0)
    moments = np.float32(rng.uniform(2, 3, (DRAWS, 2, 3)))
    spread = covariances(rng, 3)
    state = hutchinson_averages.init(2)
    for draw in zip(moments, spread, strict=True):
        state = hutchinson(state, jnp.float32(1.0), *draw, KEEP)
    mean, covariance = averaged((moments, spread))
    read = hutchinson_averages.read(state, names=("g",))
    for slot, suffix in enumerate(("", "/g")):
        _, square, bottom = mean[slot]
        dimension = read[f"intrinsic_dimension{suffix}"]
        error = relative_error(mean[slot], covariance[slot], 1, 2)
        np.testing.assert_allclose(dimension.value, square / bottom, rtol=1e-5)
        np.testing.assert_allclose(dimension.error, square / bottom * error, rtol=1e-4)
        trace = read[f"trace{suffix}"]
        np.testing.assert_allclose(trace.value, mean[slot, 0], rtol=1e-5)
        np.testing.assert_allclose(trace.error, covariance[slot, 0, 0] ** 0.5, rtol=1e-4)


def test_hutchinson_keeps_its_last_dimension_where_a_draw_gives_none(hutchinson):
    zeros, unit = jnp.zeros((1, 3, 3)), jnp.float32(1.0)
    start = hutchinson_averages.init(1)
    state = hutchinson(start, unit, jnp.float32([[2.0, 4.0, 2.0]]), zeros, KEEP)
    bad = hutchinson(state, unit, jnp.float32([[2.0, 4.0, -9.0]]), zeros, KEEP)
    np.testing.assert_array_equal(bad.dimension, state.dimension)
    assert int(bad.held) == 1
    assert int(bad.evaluations) == 2
    counted = [counter(bad, name, names=()) for name in ("trace", "intrinsic_dimension")]
    assert list(map(int, counted)) == [2, 1]
    lost = hutchinson(state, unit, jnp.full((1, 3), jnp.nan), zeros, KEEP)
    np.testing.assert_array_equal(lost.moments, state.moments)
    assert int(lost.evaluations) == 1


def test_grams_held_noise_scale_is_told_and_its_held_dimension_is_not(gram):
    def counts(state):
        names = ("intrinsic_dimension", "noise_scale", "intrinsic_dimension/g")
        return [int(counter(state, name, names=("g",))) for name in names]

    def with_moments(state, moments):
        drawn = (jnp.float32(moments), jnp.zeros((2, 4, 4)), jnp.ones(3), jnp.zeros(3))
        return gram(state, jnp.float32(1.0), drawn, KEEP)

    good = with_moments(gram_averages.init(2), [[2.0, 1.0, 3.0, 1.0]] * 2)
    assert counts(good) == [1, 1, 1]
    held = with_moments(good, [[2.0, -9.0, 3.0, -9.0], [2.0, 1.0, 3.0, 1.0]])
    assert counts(held) == [1, 2, 2]
    error = gram_averages.read(held, names=("g",), row_size=1, centred=True)["noise_scale"].error
    assert np.isinf(error)  # triggers must see that it is unknown now


def test_grams_ratios_have_the_errors_of_correlated_averages(gram):
    rng = np.random.default_rng(1)
    moments = np.float32(rng.uniform(2, 3, (DRAWS, 2, 4)))
    spread = covariances(rng, 4)
    eigen = np.float32(rng.uniform(1, 2, (DRAWS, 3)))
    eigen_spread = np.float32(rng.uniform(0.1, 0.2, (DRAWS, 3)))
    state = gram_averages.init(2)
    for draw in zip(moments, spread, eigen, eigen_spread, strict=True):
        state = gram(state, jnp.float32(1.0), draw, KEEP)
    mean, covariance = averaged((moments, spread))
    read = gram_averages.read(state, names=("g",), row_size=1, centred=True)
    for slot, suffix in enumerate(("", "/g")):
        for name, top, bottom in (("intrinsic_dimension", 0, 1), ("noise_scale", 2, 3)):
            found = read[f"{name}{suffix}"]
            ratio = mean[slot, top] / mean[slot, bottom]
            error = relative_error(mean[slot], covariance[slot], top, bottom)
            np.testing.assert_allclose(found.value, ratio, rtol=1e-5)
            np.testing.assert_allclose(found.error, ratio * error, rtol=1e-4)
        np.testing.assert_allclose(
            read[f"trace{suffix}"].error, covariance[slot, 2, 2] ** 0.5, rtol=1e-4
        )
    top, variance = averaged((eigen, eigen_spread))
    np.testing.assert_allclose(read["top_eigenvalue"], (top[0], variance[0] ** 0.5), rtol=1e-5)


def test_grams_covariance_is_the_jackknifes_of_its_four_moments():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((7, 9)) * 0.8 ** np.arange(9) + 0.5
    probe = gram_probe(lambda params, batch: batch, examples=7, smoothing=0.0)
    state = probe.init(None)
    inputs = ProbeInputs(None, None, None, jnp.float32(rows), jax.random.key(0), jnp.int32(200))
    state = jax.jit(lambda batch: probe.measure(inputs._replace(batch=batch), state))(inputs.batch)

    def moments(rows):
        n = len(rows)
        top, bottom = sums.centred_sums(jnp.float32(rows @ rows.T))
        spread = np.cov(rows, rowvar=False).trace()
        # The squared length of the mean, less the noise in it.
        return [float(top), float(bottom), spread, np.square(rows.mean(0)).sum() - spread / n]

    unit = moments(rows)[2]
    scale = np.array([unit**2, unit**2, unit, unit])
    left_out = np.array([moments(np.delete(rows, out, 0)) for out in range(7)]) / scale
    gaps = left_out - left_out.mean(0)
    np.testing.assert_allclose(state.moments[0], moments(rows) / scale, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(state.covariance[0], 6 / 7 * gaps.T @ gaps, rtol=1e-2, atol=1e-4)


def test_hutchinsons_covariance_is_that_of_first_order_influences_as_wide_as_students():
    x, y, xy = np.float32(np.random.default_rng(3).uniform(2, 3, (3, 4)))
    moments, covariance = jax.jit(_moments)(x, y, xy)
    trace = (x + y) / 2
    pairs = [x[i] * y[j] for i in range(4) for j in range(4) if i != j]
    np.testing.assert_allclose(moments, [trace.mean(), np.mean(pairs), xy.mean()], rtol=1e-5)
    influence = np.cov([trace, 2 * trace.mean() * trace, xy]) / 4
    width = stats.t.ppf(0.975, 3) / stats.norm.ppf(0.975)
    np.testing.assert_allclose(covariance, width**2 * influence, rtol=1e-4)
