"""scale_by_diagonal_fisher against float64 references, its estimators against dense diagonals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part
from fgo_jax.precondition.diagonal_fisher import scale_by_diagonal_fisher
from fgo_jax.precondition.shared import model
from tests.precondition.sequences import run_on_batches

RNG = np.random.default_rng(0)
B1, B2, GAMMA, EPS, EVERY = 0.9, 0.7, 0.5, 1e-12, 3
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(4)}
BATCH = {
    "x": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32),
    "kept": jnp.asarray(RNG.uniform(0.1, 1.0, size=6), jnp.float32),
}


def predict(params, batch):
    return batch["x"] @ params["w"] + params["b"][None]


def gradient(size):
    return jax.tree.map(lambda p: jnp.float32(size * RNG.normal(size=p.shape)), PARAMS)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def bartlett(x, shares, logits, labels):
    """The square of sum_i sqrt(s_i) grad l_i, of the softmax of a linear layer, row by row."""
    residual = (softmax(logits) - np.eye(4)[labels]) * np.sqrt(shares)[:, None]
    w = sum(np.outer(a, r) for a, r in zip(x, residual, strict=True))
    return {"w": w**2, "b": residual.sum(0) ** 2}


def averaged(estimates, steps):
    """Debiased average over refreshes, from its definition as a weighted mean."""
    seen, out = [], []
    for t in range(steps):
        if t % EVERY == 0:
            seen.append(estimates[t])
        weights = (1 - B2) * B2 ** np.arange(len(seen))[::-1]
        out.append(sum(w * h for w, h in zip(weights, seen, strict=True)) / weights.sum())
    return out


def sophia(grads, diagonals):
    m, out = 0.0, []
    for t, (g, h) in enumerate(zip(grads, diagonals, strict=True), start=1):
        m = B1 * m + (1 - B1) * g
        out.append(np.clip(m / (1 - B1**t) / np.maximum(GAMMA * h, EPS), -1.0, 1.0))
    return out


@pytest.mark.parametrize("weights", [None, "kept"])
def test_equals_the_reference_with_the_same_labels_over_three_periods(weights):
    steps = 3 * EVERY + 2
    tx = scale_by_diagonal_fisher(
        predict, weights=weights, every=EVERY, b1=B1, b2=B2, gamma=GAMMA, eps=EPS
    )
    batches = [jax.tree.map(lambda leaf, t=t: leaf * (1 + 0.1 * t), BATCH) for t in range(steps)]
    # Some entries are clipped and some are not.
    grads = [gradient(0.1) for _ in range(steps)]
    updates, states = run_on_batches(tx, PARAMS, grads, batches)
    key = model.key_data(0)
    estimates = []
    for t, batch in enumerate(batches):
        logits = predict(PARAMS, batch)
        drawn = jax.random.fold_in(model.key_of_step(key, jnp.int32(t)), 0)
        labels = losses.draw_labels("softmax_cross_entropy", logits, drawn, Part().rows)
        kept = np.ones(6) if weights is None else np.asarray(batch["kept"], float)
        x = np.asarray(batch["x"], float)
        estimates.append(
            bartlett(x, kept / kept.sum(), np.asarray(logits, float), np.asarray(labels))
        )
    clipped = []
    for name in PARAMS:
        diagonals = averaged([e[name] for e in estimates], steps)
        expected = sophia([np.asarray(g[name], float) for g in grads], diagonals)
        np.testing.assert_allclose(states.diagonal[name], diagonals, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(updates[name], expected, rtol=1e-4, atol=1e-5)
        clipped.append((np.abs(expected) == 1.0).reshape(-1))
    assert 0.1 < np.mean(np.concatenate(clipped)) < 0.9
    np.testing.assert_array_equal(states.refreshes, np.arange(steps) // EVERY + 1)

    last = jax.tree.map(lambda leaf: leaf[-1], states)
    moment = optax.tree.scale(1 / (1 - B1**steps), last.first_moment)
    twice = tx.metric(tx.metric(moment, last), last)
    for name in PARAMS:
        np.testing.assert_allclose(twice[name], updates[name][-1], rtol=1e-4)
    fresh = tx.metric(grads[0], tx.init(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, fresh, grads[0])


def test_hutchinson_equals_the_reference_with_the_same_signs():
    steps = 3 * EVERY + 2
    matrices = [np.cov(RNG.normal(size=(16, 20))) for _ in range(steps)]

    def dense(params, batch):
        def matvec(v):
            product = batch @ jnp.concatenate([v["b"], v["w"].reshape(-1)])
            return {"b": product[:4], "w": product[4:].reshape(3, 4)}

        return matvec

    tx = scale_by_diagonal_fisher(
        operator=dense, every=EVERY, b1=B1, b2=B2, gamma=GAMMA, eps=EPS, seed=7
    )
    grads = [gradient(1.0) for _ in range(steps)]
    updates, _ = run_on_batches(tx, PARAMS, grads, [jnp.float32(matrix) for matrix in matrices])
    estimates, drawn = [], set()
    for t, matrix in enumerate(matrices):
        key = model.key_of_step(model.key_data(7), jnp.int32(t))
        signs = optax.tree.random_like(key, PARAMS, jax.random.rademacher, jnp.float32)
        z = np.concatenate([signs["b"], signs["w"].reshape(-1)]).astype(float)
        assert set(z) == {-1.0, 1.0}
        drawn.add(tuple(z))
        estimates.append(z * (matrix @ z))
    diagonals = averaged(estimates, steps)
    flat = [np.concatenate([g["b"], g["w"].reshape(-1)]).astype(float) for g in grads]
    expected = np.stack(sophia(flat, diagonals))
    found = np.concatenate([updates["b"], updates["w"].reshape(steps, -1)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.any(np.stack(estimates) < 0)  # taken as they are, and then floored
    assert len(drawn) == steps


def mlp(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) * params["b"][None]


@pytest.mark.parametrize("estimator", ["gauss_newton_bartlett", "hutchinson"])
@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"]
)
def test_estimators_are_unbiased_for_the_diagonal_at_any_batch(loss, estimator):
    draws = 3000
    tx = scale_by_diagonal_fisher(mlp, loss, estimator, weights="kept", every=1)
    start = tx.init(PARAMS)

    @jax.jit
    def diagonals(keys):
        def draw(key):
            state = start._replace(fisher_key=jax.random.key_data(key))
            return tx.update(PARAMS, state, PARAMS, batch=BATCH)[1].diagonal

        return jax.lax.map(draw, keys, batch_size=500)

    drawn = diagonals(jax.random.split(jax.random.key(1), draws))
    matvec = fgo.curvature.ggn(mlp, loss, weights="kept")(PARAMS, BATCH)
    for name, p in PARAMS.items():
        found = np.asarray(drawn[name], float).reshape(draws, -1)
        basis = jnp.eye(p.size).reshape(p.size, *p.shape)
        zeros = optax.tree.zeros_like(PARAMS)
        truth = jax.vmap(lambda e, n=name, z=zeros: jnp.vdot(e, matvec({**z, n: e})[n]))(basis)
        errors = found.std(0, ddof=1) / draws**0.5
        off = np.abs(found.mean(0) - truth) / errors
        # 16 entries, six cases: 3 errors for nearly all and 4 for each.
        assert np.mean(off < 3) > 0.9, off
        assert np.all(off < 4), off
        assert np.all(4 * errors < 0.5 * truth)
