"""scale_by_diagonal_fisher against float64 references, its estimators against dense diagonals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part
from fgo_jax.precondition import _model
from fgo_jax.precondition.diagonal_fisher import scale_by_diagonal_fisher

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


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def run(tx, grads, batches, params=PARAMS):
    @jax.jit
    def scan(grads, batches):
        def step(state, now):
            updates, state = tx.update(now[0], state, params, batch=now[1])
            return state, (updates, state)

        return jax.lax.scan(step, tx.init(params), (grads, batches))[1]

    return jax.device_get(scan(stacked(grads), stacked(batches)))


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
    updates, states = run(tx, grads, batches)
    key = _model.key_data(0)
    estimates = []
    for t, batch in enumerate(batches):
        logits = predict(PARAMS, batch)
        labels = losses.draw_labels(
            "softmax_cross_entropy", logits, _model.key_of_step(key, jnp.int32(t)), Part().rows
        )
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
    updates, _ = run(tx, grads, [jnp.float32(matrix) for matrix in matrices])
    estimates = []
    for t, matrix in enumerate(matrices):
        key = _model.key_of_step(_model.key_data(7), jnp.int32(t))
        signs = optax.tree.random_like(key, PARAMS, jax.random.rademacher, jnp.float32)
        z = np.concatenate([signs["b"], signs["w"].reshape(-1)]).astype(float)
        assert set(z) == {-1.0, 1.0}
        estimates.append(z * (matrix @ z))
    diagonals = averaged(estimates, steps)
    flat = [np.concatenate([g["b"], g["w"].reshape(-1)]).astype(float) for g in grads]
    expected = np.stack(sophia(flat, diagonals))
    found = np.concatenate([updates["b"], updates["w"].reshape(steps, -1)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.any(np.stack(estimates) < 0)  # taken as they are, and then floored
    assert len({tuple(e) for e in np.sign(estimates)}) == steps


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


def test_first_update_is_full_and_no_entry_exceeds_one():
    tx = scale_by_diagonal_fisher(predict)
    grads = [jax.tree.map(lambda p, s=s: s * jnp.ones_like(p), PARAMS) for s in (1.0, -50.0, 1e-4)]
    updates, _ = run(tx, grads, [BATCH] * 3)
    for leaf in jax.tree.leaves(updates):
        assert np.all(leaf[0] > 0.1)
        assert np.all(np.abs(leaf) <= 1.0)


def test_scaling_the_loss_changes_nothing():
    def fisher(scale):
        operator = fgo.curvature.ggn(predict)
        return lambda p, b: lambda v: optax.tree.scale(scale, operator(p, b)(v))

    grads = [jax.tree.map(lambda p: 0.01 * p, PARAMS)] * 4
    plain, _ = run(scale_by_diagonal_fisher(operator=fisher(1.0)), grads, [BATCH] * 4)
    scaled = [optax.tree.scale(1024.0, g) for g in grads]
    other, _ = run(scale_by_diagonal_fisher(operator=fisher(1024.0)), scaled, [BATCH] * 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain, other)


def test_converges_where_plain_gradients_crawl():
    """A quadratic of condition 1e4 along the axes."""
    curvature = jnp.geomspace(100.0, 0.01, 20)
    tx = scale_by_diagonal_fisher(operator=lambda p, b: lambda v: curvature * v, gamma=1.0, b1=0.9)

    @jax.jit
    def final(rate, plain_rate):
        def step(carry, _):
            w, state, plain = carry
            updates, state = tx.update(curvature * w, state, w, batch=0.0)
            return (w - rate * updates, state, plain - plain_rate * curvature * plain), None

        start = jnp.ones(20)
        carry, _ = jax.lax.scan(step, (start, tx.init(start), start), length=200)
        return [jnp.sum(curvature * x**2) for x in (carry[0], carry[2])]

    ours, plain = final(0.1, 0.0199)
    assert ours < 1e-4 * plain
    # The same rate is far beyond what plain gradients bear.
    assert not final(0.1, 0.1)[1] < 1e6


ODD = {"one": (1,), "scalar": (), "empty": (0, 4), "unseen": (3,), "kernel": (4, 2)}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("estimator", ["gauss_newton_bartlett", "hutchinson"])
def test_odd_leaves_and_types(dtype, estimator):
    params = {k: jnp.ones(s, dtype) for k, s in ODD.items()}

    def model(p, batch):
        return batch @ p["kernel"] * p["one"][None] + p["scalar"] + jnp.sum(p["empty"])

    tx = scale_by_diagonal_fisher(model, "sigmoid_cross_entropy", estimator, every=2)
    batch = jax.random.normal(jax.random.key(0), (8, 4), dtype)
    update = jax.jit(tx.update)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state = first = tx.init(params)
        for scale in (0.0, 1.0, 0.0):
            g = jax.tree.map(lambda p, s=scale: (s * p).astype(dtype), params)
            updates, state = update(g, state, params, batch=batch)
            everything = jax.tree.leaves((updates, state))
            assert all(np.all(np.isfinite(np.float32(x))) for x in everything)
            assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
            if int(state.fisher_step) == 1:
                assert not any(np.any(u) for u in jax.tree.leaves(updates))
    # Without curvature, the sign.
    np.testing.assert_array_equal(np.float32(updates["unseen"]), 1.0)
    assert not np.any(state.diagonal["unseen"])
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), first, state)
    assert all(jax.tree.leaves(same))


def test_what_is_not_finite_enters_nothing():
    tx = scale_by_diagonal_fisher(
        operator=lambda p, b: lambda v: jax.tree.map(jnp.multiply, b, v), every=1
    )
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    bad = {**ones, "w": ones["w"].at[0, 0].set(jnp.inf)}
    updates, states = run(tx, [ones, bad, ones, ones], [ones, ones, bad, ones])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, states)))
    assert not np.any(updates["w"][1])
    assert np.all(updates["b"] > 0)
    np.testing.assert_array_equal(states.first_moment["w"][1], states.first_moment["w"][0])
    np.testing.assert_array_equal(states.diagonal["w"][2], states.diagonal["w"][1])
    np.testing.assert_allclose(states.diagonal["b"], 1.0)


@pytest.mark.parametrize("estimator", ["gauss_newton_bartlett", "hutchinson"])
def test_a_masked_part_and_what_is_missing(estimator):
    tx = scale_by_diagonal_fisher(predict, estimator=estimator)
    masked = optax.masked(tx, {"w": True, "b": False})
    update = jax.jit(masked.update)
    updates, state = update(PARAMS, masked.init(PARAMS), PARAMS, batch=BATCH, probe_params=PARAMS)
    np.testing.assert_array_equal(updates["b"], PARAMS["b"])
    whole = jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS, batch=BATCH)[1]
    if estimator == "gauss_newton_bartlett":  # the same labels
        found = state.inner_state.diagonal["w"]
        np.testing.assert_allclose(found, whole.diagonal["w"], rtol=1e-5)
    with pytest.raises(TypeError, match="probe_params=params"):
        masked.update(PARAMS, masked.init(PARAMS), PARAMS, batch=BATCH)
    with pytest.raises(TypeError, match="batch=batch"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="needs all of its parameters"):
        tx.update(PARAMS, tx.init(PARAMS), batch=BATCH)


def test_a_sampled_operator_gets_a_key_and_all_of_it_is_one_conditional():
    tx = scale_by_diagonal_fisher(operator=fgo.curvature.sampled_fisher(predict), every=1)
    _, states = run(tx, [PARAMS] * 2, [BATCH] * 2)
    assert np.all(states.diagonal["w"][0] != states.diagonal["w"][1])
    jaxpr = jax.make_jaxpr(lambda g, s: tx.update(g, s, g, batch=BATCH))(PARAMS, tx.init(PARAMS))
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1
    assert "callback" not in str(jaxpr)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "either a model, predict_fn=, or a curvature operator"),
        (dict(predict_fn=predict, operator=predict), "and not both"),
        (dict(operator=predict, estimator="gauss_newton_bartlett"), "pass predict_fn= and loss="),
        (dict(operator=predict, weights="kept"), "let the operator weigh"),
        (dict(predict_fn=predict, loss=lambda z, b: z), "pass estimator='hutchinson'"),
        (dict(predict_fn=predict, loss="huber"), "loss must be one of"),
        (dict(predict_fn=predict, estimator="exact"), "estimator must be one of"),
        (dict(predict_fn=predict, every=0), "every must be an integer >= 1"),
        (dict(predict_fn=predict, b2=1.0), r"b2 must lie in \[0, 1\)"),
        (dict(predict_fn=predict, gamma=0.0), "gamma must be a finite number > 0"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_diagonal_fisher(**arguments)
