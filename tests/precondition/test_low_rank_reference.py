"""scale_by_low_rank_fisher against dense float64 algebra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.precondition.low_rank_fisher import scale_by_low_rank_fisher
from tests.precondition.sequences import stacked

PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}  # ten parameters


def flat(tree):
    return jnp.concatenate([tree["a"].reshape(-1), tree["b"]])


def tree(vector):
    return {"a": jnp.asarray(vector[:6], jnp.float32).reshape(2, 3), "b": jnp.float32(vector[6:])}


def dense(params, batch):
    """The batch is the matrix."""
    return lambda v: tree(batch @ flat(v))


def symmetric(eigenvalues, seed):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return q * np.asarray(eigenvalues, float) @ q.T


def reference(matrices, grads, rank, every, damping, b1, unit_gain):
    """P inverted as a dense matrix, at every step."""
    moment, out = 0.0, []
    for t, (matrix, g) in enumerate(zip(matrices, grads, strict=True)):
        if t % every == 0:
            values, vectors = np.linalg.eigh(matrix)
            values, vectors = values[-rank:], vectors[:, -rank:]
            rho = damping * values.min()
            p = vectors @ np.diag(values) @ vectors.T + rho * np.eye(len(matrix))
        moment = b1 * moment + (1 - b1) * g
        step = np.linalg.solve(p, moment / (1 - b1 ** (t + 1)))
        out.append(rho * step if unit_gain else step)
    return out


@functools.cache
def runner(**options):
    tx = scale_by_low_rank_fisher(dense, **options)

    @jax.jit
    def run(params, grads, batches):
        def step(state, now):
            updates, state = tx.update(now[0], state, params, batch=now[1])
            return state, (updates, state)

        return jax.lax.scan(step, tx.init(params), (grads, batches))[1]

    return tx, run


@pytest.mark.parametrize(("b1", "unit_gain", "damping"), [(0.9, True, 1.0), (None, False, 0.3)])
def test_equals_the_dense_inverse_over_three_refresh_periods(b1, unit_gain, damping):
    every, rank, steps = 4, 3, 15
    rng = np.random.default_rng(0)
    spectrum = np.geomspace(50.0, 0.1, 10)
    matrices = [symmetric(spectrum * rng.uniform(0.8, 1.2, 10), seed) for seed in range(steps)]
    grads = rng.normal(size=(steps, 10))
    # As many products as there are dimensions: the Ritz values are the eigenvalues.
    tx, run = runner(
        rank=rank, num_steps=10, every=every, damping=damping, b1=b1, unit_gain=unit_gain
    )
    batches = jnp.asarray(np.stack(matrices), jnp.float32)
    updates, states = run(PARAMS, stacked(map(tree, grads)), batches)
    expected = reference(matrices, grads, rank, every, damping, b1 or 0.0, unit_gain)
    for t in range(steps):
        # Eigenvectors of a float32 product are off by eps |A| / gap, 1e-7 * 50 / 1.
        error = flat(jax.tree.map(lambda x, t=t: x[t], updates)) - expected[t]
        assert np.abs(error).max() < 1e-4 * np.abs(expected[t]).max(), t
    np.testing.assert_array_equal(states.refreshes, np.arange(steps) // every + 1)

    last = jax.tree.map(lambda x: x[-1], states)
    g = tree(grads[-1])
    twice = flat(tx.metric(tx.metric(g, last), last))
    values, vectors = np.linalg.eigh(matrices[-1 - (steps - 1) % every])
    u, values = vectors[:, -rank:], values[-rank:]
    rho = damping * values.min()
    truth = np.linalg.solve(u * values @ u.T + rho * np.eye(10), grads[-1])
    np.testing.assert_allclose(twice, truth * (rho if unit_gain else 1.0), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(flat(tx.metric(g, tx.init(PARAMS))), flat(g))


# Three eigenvalues apart from a bulk; to Lanczos, a diagonal operator is as good as any.
SPECTRUM = jnp.asarray(np.r_[400.0, 100.0, 30.0, np.geomspace(3.0, 1.0, 77)], jnp.float32)


def diagonal(params, batch):
    return lambda v: batch * v


def test_few_products_find_the_outliers():
    spectrum = SPECTRUM
    tx = scale_by_low_rank_fisher(diagonal, rank=3, num_steps=14, b1=None)
    g = jax.random.normal(jax.random.key(0), spectrum.shape)
    updates, state = jax.jit(tx.update)(g, tx.init(g), g, batch=spectrum)
    np.testing.assert_allclose(state.eigenvalues, spectrum[:3], rtol=1e-4)
    share = jnp.where(jnp.arange(80) < 3, 30.0 / (spectrum + 30.0), 1.0)
    # Third vectors are the least converged: an angle of 1e-3 or so.
    np.testing.assert_allclose(updates, share * g, atol=5e-3)


def test_converges_at_a_rate_at_which_plain_gradients_diverge():
    spectrum, start = SPECTRUM, jnp.ones(80)

    @functools.partial(jax.jit, static_argnums=0)
    def final(preconditioned, rate):
        tx = scale_by_low_rank_fisher(diagonal, 3, 14, every=50, b1=None)

        def step(carry, _):
            w, state = carry
            u = g = spectrum * w
            if preconditioned:
                u, state = tx.update(g, state, w, batch=spectrum)
            return (w - rate * u, state), None

        (w, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=120)
        return jnp.sum(spectrum * w**2) / jnp.sum(spectrum * start**2)

    rates = [3e-3, 4.9e-3, 0.03, 0.06, 0.1]
    ours = [float(final(True, rate)) for rate in rates]
    plain = [float(final(False, rate)) for rate in rates]
    best = int(np.nanargmin(ours))
    assert ours[best] < 1e-5
    assert not plain[best] < 1.0
    assert ours[best] < 1e-2 * np.nanmin(plain)


def test_a_leaf_that_is_not_finite_enters_nothing():
    rng = np.random.default_rng(1)
    grads = [tree(rng.normal(size=10)) for _ in range(4)]
    matrix = jnp.asarray(symmetric(np.geomspace(50.0, 0.1, 10), 0), jnp.float32)
    _, run = runner(rank=3, num_steps=10, every=2)

    def results(grads):
        return run(PARAMS, stacked(grads), jnp.broadcast_to(matrix, (4, 10, 10)))

    broken = [dict(g) for g in grads]
    broken[2]["a"] = broken[2]["a"].at[0, 0].set(jnp.inf)
    broken[3]["b"] = broken[3]["b"].at[0].set(jnp.nan)
    updates, states = results(broken)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, states)))
    assert not np.any(updates["a"][2])
    assert not np.any(updates["b"][3])
    assert np.all(np.asarray(updates["b"][2]) != 0)
    for key, step in (("a", 2), ("b", 3)):
        moments = states.first_moment[key]
        np.testing.assert_array_equal(moments[step], moments[step - 1])
    whole = results(grads)[0]
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:2], y[:2]), updates, whole)


def test_a_measurement_without_a_spectrum_is_not_taken_over():
    good = jnp.asarray(symmetric(np.geomspace(50.0, 0.1, 10), 0), jnp.float32)
    nothing, broken = jnp.zeros((10, 10)), jnp.full((10, 10), jnp.nan)
    batches = jnp.stack([nothing, broken, good, nothing, broken, -good, good])
    g = tree(np.arange(10.0) - 4.5)
    _, run = runner(rank=3, num_steps=10, every=1, b1=None)
    updates, states = run(PARAMS, stacked([g] * 7), batches)
    np.testing.assert_array_equal(states.refreshes, [0, 0, 1, 1, 1, 1, 2])
    for t in (0, 1):  # P is the identity
        np.testing.assert_array_equal(flat(jax.tree.map(lambda x, t=t: x[t], updates)), flat(g))
    for t in (3, 4, 5):
        jax.tree.map(lambda x, t=t: np.testing.assert_array_equal(x[t], x[2]), updates)
    assert np.all(np.isfinite(states.rho))
    # At its own cadence it would have waited until step 4: a first one is tried until it is there.
    _, patient = runner(rank=3, num_steps=10, every=4, b1=None)
    assert patient(PARAMS, stacked([g] * 7), batches)[1].refreshes.tolist() == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("values", [[5.0, 2.0], [4.0]])
def test_an_operator_of_lower_rank(values):
    matrix = symmetric(values + [0.0] * (10 - len(values)), 3)
    _, run = runner(rank=3, num_steps=10, every=1, b1=None)
    g = np.arange(10.0) - 4.5
    updates, states = run(PARAMS, stacked([tree(g)]), jnp.asarray(matrix[None], jnp.float32))
    expected = np.pad(values, (0, 3 - len(values)))
    np.testing.assert_allclose(states.eigenvalues[0], expected, rtol=1e-5)
    np.testing.assert_allclose(states.rho[0], min(values), rtol=1e-5)
    truth = min(values) * np.linalg.solve(matrix + min(values) * np.eye(10), g)
    np.testing.assert_allclose(flat(jax.tree.map(lambda x: x[0], updates)), truth, atol=1e-4)
