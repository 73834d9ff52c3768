"""What scale_by_diagonal_fisher keeps true for every leaf, dtype, tree and batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.precondition.diagonal_fisher import scale_by_diagonal_fisher
from tests.precondition.sequences import run_on_batches

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(4)}
BATCH = {
    "x": jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32),
    "kept": jnp.asarray(RNG.uniform(0.1, 1.0, size=6), jnp.float32),
}


def predict(params, batch):
    return batch["x"] @ params["w"] + params["b"][None]


def test_first_update_is_full_and_no_entry_exceeds_one():
    tx = scale_by_diagonal_fisher(predict)
    grads = [jax.tree.map(lambda p, s=s: s * jnp.ones_like(p), PARAMS) for s in (1.0, -50.0, 1e-4)]
    updates, _ = run_on_batches(tx, PARAMS, grads, [BATCH] * 3)
    for leaf in jax.tree.leaves(updates):
        assert np.all(leaf[0] > 0.1)
        assert np.all(np.abs(leaf) <= 1.0)


def test_scaling_the_loss_changes_nothing():
    def fisher(scale):
        operator = fgo.curvature.ggn(predict)
        return lambda p, b: lambda v: optax.tree.scale(scale, operator(p, b)(v))

    grads = [jax.tree.map(lambda p: 0.01 * p, PARAMS)] * 4
    plain, _ = run_on_batches(
        scale_by_diagonal_fisher(operator=fisher(1.0)), PARAMS, grads, [BATCH] * 4
    )
    scaled = [optax.tree.scale(1024.0, g) for g in grads]
    other, _ = run_on_batches(
        scale_by_diagonal_fisher(operator=fisher(1024.0)), PARAMS, scaled, [BATCH] * 4
    )
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
    updates, states = run_on_batches(tx, PARAMS, [ones, bad, ones, ones], [ones, ones, bad, ones])
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
    _, states = run_on_batches(tx, PARAMS, [PARAMS] * 2, [BATCH] * 2)
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


@pytest.mark.parametrize("estimator", ["gauss_newton_bartlett", "hutchinson"])
def test_devices_with_parts_of_the_batch_agree(estimator):
    tx = scale_by_diagonal_fisher(predict, estimator=estimator, axis_name="devices")
    alone = scale_by_diagonal_fisher(predict, estimator=estimator)
    start = tx.init(PARAMS)
    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:]), BATCH)

    def update(tx, batch):
        return tx.update(PARAMS, start, PARAMS, batch=batch)[1].diagonal

    both = jax.jit(jax.vmap(lambda b: update(tx, b), axis_name="devices"))(parts)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), both)
    whole = jax.jit(lambda b: update(alone, b))(BATCH)
    if estimator == "hutchinson":  # the same signs, and the mean of the parts' products
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4), both, whole)
    else:  # labels of their own
        first = jax.jit(lambda b: update(alone, b))(jax.tree.map(lambda leaf: leaf[0], parts))
        assert not any(np.allclose(both[k][0], first[k]) for k in PARAMS)


def test_hyperparameters_may_be_injected():
    injected = optax.inject_hyperparams(
        scale_by_diagonal_fisher,
        static_args=("predict_fn", "loss", "estimator", "operator", "weights", "axis_name", "seed"),
    )(predict_fn=predict, gamma=0.5, every=2)
    updates, _ = run_on_batches(injected, PARAMS, [PARAMS] * 3, [BATCH] * 3)
    plain, _ = run_on_batches(
        scale_by_diagonal_fisher(predict, gamma=0.5, every=2), PARAMS, [PARAMS] * 3, [BATCH] * 3
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, plain)
