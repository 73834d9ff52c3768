"""SASA against definitions in numpy: batch means, the two tests, and walks in a bowl."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import rival_triggers as rivals
from benchmarks.rival_triggers import batch_means
from tests.planted import autoregressive, fires, readings, verdicts, walk


def test_the_drift_is_the_change_of_the_squared_norm():
    flat, path = walk(9)
    evaluations, read = readings(rivals.norm_drift(), path)
    exact = flat.astype(np.float64)
    steps = np.diff(exact, axis=0)
    # The parameters are f32 and given; sums of 15 products in f32 against f64.
    np.testing.assert_allclose(read["norm_drift"][1:], np.diff((exact**2).sum(1)), rtol=1e-4)
    np.testing.assert_allclose(read["step_square"][1:], (steps**2).sum(1), rtol=1e-4)
    np.testing.assert_array_equal(evaluations, np.arange(9))


def test_the_drift_is_the_master_condition_times_minus_twice_the_rate():
    # theta' = theta - eta d, so |theta'|^2 - |theta|^2 = -2 eta (<theta, d> - eta/2 |d|^2).
    rng, eta = np.random.default_rng(1), 0.3
    theta, d = rng.standard_normal((2, 7)).astype(np.float32)
    path = {"x": jnp.asarray(np.stack([theta, theta - np.float32(eta) * d]))}
    _, read = readings(rivals.norm_drift(), path)
    master = theta @ d - 0.5 * eta * d @ d
    np.testing.assert_allclose(read["norm_drift"][1], -2 * eta * master, rtol=1e-5)
    np.testing.assert_allclose(read["step_square"][1], eta**2 * d @ d, rtol=1e-5)


@pytest.mark.parametrize("count", [5, 16, 17, 100, 129])
def test_batch_means_equal_their_definition(count):
    data = autoregressive(0.8, 2 * count, seed=count).reshape(count, 2)

    @jax.jit
    def run(rows):
        state = batch_means.init(2, 16)
        state, _ = jax.lax.scan(lambda s, x: (batch_means.update(s, x), None), state, rows)
        return batch_means.interval(state, 0.25, 0.8)

    found = run(jnp.asarray(data, jnp.float32))
    size = 1
    while count // size >= 16:
        size *= 2
    batches = data[: count // size * size].reshape(-1, size, 2).mean(1)
    kept = int(np.ceil(0.25 * len(batches)))
    means = batches[-kept:]
    np.testing.assert_allclose(found.mean, means.mean(0), rtol=1e-5, atol=1e-6)
    middle = kept - kept // 2
    halves = [means[:middle].mean(0), means[middle:].mean(0)]
    np.testing.assert_allclose(found.halves, halves, rtol=1e-5, atol=1e-6)
    half = stats.t.ppf(0.9, kept - 1) * means.std(0, ddof=1) / np.sqrt(kept)
    np.testing.assert_allclose(found.half_width, half, rtol=1e-4)
    assert int(found.samples) == kept * size


def test_batch_means_cover_the_mean_of_a_correlated_series():
    # 80 % intervals of an AR(0.5) series whose mean is zero. Batches of 16 leave a
    # correlation of about a tenth between neighbours, hence a little less than 80 %.
    series = jnp.asarray(
        np.stack([autoregressive(0.5, 4000, seed) for seed in range(400)]), jnp.float32
    )[:, :1000]

    def one(values):
        def add(state, x):
            return batch_means.update(state, x[None]), None

        state, _ = jax.lax.scan(add, batch_means.init(1, 64), values)
        found = batch_means.interval(state, 0.5, 0.8)
        return jnp.abs(found.mean[0]) < found.half_width[0]

    share = float(jnp.mean(jax.jit(jax.vmap(one))(series)))
    # The binomial standard error of 400 repeats is 2 %.
    assert 0.70 < share < 0.86


def test_sasa_holds_on_a_stationary_norm_and_not_on_a_drifting_one():
    noise = 0.2 * autoregressive(0.5, 2000, seed=2)
    square = np.ones(2000)
    still = fires(rivals.stationary(), norm_drift=noise, step_square=square)
    assert still is not None
    assert still >= 4 * 64 - 1  # a quarter of the samples must be 64
    growing = verdicts(rivals.stationary(), norm_drift=noise + 1.0, step_square=square)
    assert (growing < 1).all()
    assert growing[-1] == -1


def test_sasa_does_not_take_noise_for_rest():
    noise = 30.0 * autoregressive(0.5, 2000, seed=3)
    out = verdicts(rivals.stationary(), norm_drift=noise, step_square=np.ones(2000))
    assert (out < 1).all()


def test_sasa_plus_holds_where_the_interval_holds_zero():
    # Half of 512 samples are kept, in batches of 16, and there is one look, at the last of them.
    noise = 30.0 * autoregressive(0.5, 512, seed=9)
    seen = set()
    for shift in (0.0, 3.0, -4.0, 20.0):
        series = noise + shift
        trigger = rivals.stationary(tolerance=None, confidence=0.95, keep=0.5, every=512)
        out = verdicts(trigger, norm_drift=series, step_square=np.ones(512))
        batches = series.reshape(-1, 16).mean(1)[-16:]
        half = stats.t.ppf(0.975, 15) * batches.std(ddof=1) / 4
        older, newer = batches[:8].mean(), batches[8:].mean()
        holds = max(abs(older), abs(newer)) < half and older * newer > 0
        seen.add(out[-1])
        assert out[-1] == (1 if holds else -1)
        assert (out[:-1] == 0).all()
    assert seen == {1, -1}
    drifting = verdicts(
        rivals.stationary(tolerance=None, confidence=0.95),
        norm_drift=noise / 30 + 1.0,
        step_square=np.ones(512),
    )
    assert (drifting < 1).all()


def test_sasa_on_walks_in_a_bowl():
    # x' = x - a x + noise forgets its start and becomes stationary; without the pull the
    # norm grows by the noise's own square at every step, the ratio 1 of the docstring.
    rng = np.random.default_rng(4)
    noise = rng.standard_normal((3000, 50)).astype(np.float32)

    def path(pull):
        x, out = np.full(50, 30.0, np.float32), []
        for step in noise:
            x = (1 - np.float32(pull)) * x + step
            out.append(x)
        return {"x": jnp.asarray(np.stack(out))}

    fired = {}
    for pull in (0.02, 0.0):
        _, read = readings(rivals.norm_drift(), path(pull))
        fired[pull] = fires(
            rivals.stationary(),
            norm_drift=read["norm_drift"][1:],
            step_square=read["step_square"][1:],
        )
    assert fired[0.02] is not None
    assert fired[0.02] > 1 / 0.02  # not before the start is forgotten
    assert fired[0.0] is None
