"""What scale_by_low_rank_fisher keeps true for every leaf, dtype, tree and operator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.precondition.low_rank_fisher import scale_by_low_rank_fisher
from tests import draws
from tests.precondition.test_low_rank_reference import PARAMS, dense, reference, symmetric, tree

ODD = {
    "one": (1,),
    "scalar": (),
    "empty": (0, 4),
    "unseen": (3,),
    "kernel": (4, 2),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_odd_leaves_and_types(dtype):
    params = {k: jnp.ones(s, dtype) for k, s in ODD.items()}

    def predict(p, batch):
        return (batch @ p["kernel"] * p["one"][None] + p["scalar"] + jnp.sum(p["empty"])).astype(
            dtype
        )

    fisher = fgo.curvature.sampled_fisher(predict, "squared_error")
    tx = scale_by_low_rank_fisher(fisher, rank=4, num_steps=6, every=2, block_size=2)
    batch = jax.random.normal(jax.random.key(0), (8, 4), dtype)
    update = jax.jit(tx.update)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state = first = tx.init(params)
        for g in (params, optax.tree.zeros_like(params), params):
            updates, state = update(g, state, params, batch=batch)
            assert all(
                np.all(np.isfinite(np.float32(x))) for x in jax.tree.leaves((updates, state))
            )
            assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert int(state.refreshes) == 2
    assert {v.dtype for v in state.eigenvectors} == {jnp.dtype(jnp.float32)}
    # What the operator does not see passes as it is: M' of ones, zeros and ones.
    share = (0.81 + 1.0) / (0.81 + 0.9 + 1.0)
    np.testing.assert_allclose(np.float32(updates["unseen"]), share, rtol=jnp.finfo(dtype).eps)
    assert not np.any(state.eigenvectors[sorted(ODD).index("unseen")])
    rows = jnp.concatenate([v.reshape(4, -1) for v in state.eigenvectors], axis=1)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-4)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), first, state)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_errors_of_half_precision_are_no_eigenvalues(dtype):
    # Four examples of one output: the operator has four eigenvalues, the process room for twelve.
    operator = fgo.curvature.ggn(lambda p, b: jnp.tanh(b.astype(p.dtype) @ p), "squared_error")
    tx = scale_by_low_rank_fisher(operator, rank=8, num_steps=12)
    batch, params = draws.normal(4, 64), 0.1 * draws.normal(64, 1, seed=1)

    @jax.jit
    def measured(params):
        return tx.update(params, tx.init(params), params, batch=batch)[1]

    exact, half = measured(params), measured(params.astype(dtype))
    assert np.count_nonzero(exact.eigenvalues) == np.count_nonzero(half.eigenvalues) == 4
    # The tangents of four outputs, each rounded; squared.
    np.testing.assert_allclose(half.eigenvalues, exact.eigenvalues, rtol=8 * jnp.finfo(dtype).eps)
    np.testing.assert_allclose(half.rho, exact.rho, rtol=8 * jnp.finfo(dtype).eps)


def test_every_refresh_draws_anew_and_the_same_seed_the_same():
    fisher = fgo.curvature.sampled_fisher(lambda p, batch: batch @ p)
    # At zero parameters the operator's eigenvalues are double, and a start vector sees one copy.
    params, batch = draws.normal(5, 3, seed=1), draws.normal(16, 5)

    @functools.cache
    def update(operator):
        return jax.jit(scale_by_low_rank_fisher(operator, 4, 15, every=1).update)

    def eigenvalues(operator, seed):
        # The seed is in the state alone.
        state = scale_by_low_rank_fisher(operator, 4, 15, every=1, seed=seed).init(params)
        found = []
        for _ in range(2):
            _, state = update(operator)(params, state, params, batch=batch)
            found.append(np.asarray(state.eigenvalues))
        return found

    first, second = eigenvalues(fisher, 0)
    assert np.all(np.abs(first - second) > 1e-3 * first)
    np.testing.assert_array_equal(eigenvalues(fisher, 0)[1], second)
    assert np.all(np.abs(eigenvalues(fisher, 1)[0] - first) > 1e-3 * first)
    exact = eigenvalues(fgo.curvature.ggn(lambda p, batch: batch @ p), 0)
    np.testing.assert_allclose(*exact, rtol=1e-5)  # of other start vectors


def test_a_masked_part_sees_its_block_of_the_operator():
    matrix = symmetric(np.geomspace(50.0, 0.1, 10), 0)
    tx = scale_by_low_rank_fisher(dense, rank=2, num_steps=6, b1=None)
    masked = optax.masked(tx, {"a": True, "b": False})
    g = tree(np.arange(10.0) - 4.5)
    batch = jnp.asarray(matrix, jnp.float32)
    update = jax.jit(masked.update)
    updates, _ = update(g, masked.init(PARAMS), PARAMS, batch=batch, probe_params=PARAMS)
    np.testing.assert_array_equal(updates["b"], g["b"])
    inner = np.asarray(g["a"], float).reshape(-1)
    (truth,) = reference([matrix[:6, :6]], [inner], 2, 1, 1.0, 0.0, True)
    np.testing.assert_allclose(updates["a"].reshape(-1), truth, atol=1e-4)
    with pytest.raises(TypeError, match="probe_params=params"):
        masked.update(g, masked.init(PARAMS), PARAMS, batch=batch)
    with pytest.raises(TypeError, match=r"batch=batch"):
        tx.update(g, tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match="needs all of its parameters"):
        tx.update(g, tx.init(PARAMS), batch=batch)


def test_devices_with_parts_of_the_batch_agree():
    fisher = fgo.curvature.ggn(lambda p, batch: batch @ p)
    params = jnp.zeros((5, 3))
    batch = jax.random.normal(jax.random.key(0), (16, 5))

    def eigenvalues(tx, batch):
        return tx.update(params, tx.init(params), params, batch=batch)[1].eigenvalues

    both = scale_by_low_rank_fisher(fisher, 4, 15, axis_name="devices")
    parts = jax.jit(jax.vmap(lambda b: eigenvalues(both, b), axis_name="devices"))(
        batch.reshape(2, 8, 5)
    )
    whole = jax.jit(lambda b: eigenvalues(scale_by_low_rank_fisher(fisher, 4, 15), b))(batch)
    np.testing.assert_array_equal(parts[0], parts[1])
    np.testing.assert_allclose(parts[0], whole, rtol=1e-4)


def test_hyperparameters_may_be_injected():
    fixed = dict(operator=dense, rank=3, num_steps=10)
    injected = optax.inject_hyperparams(
        scale_by_low_rank_fisher,
        static_args=(*fixed, "unit_gain", "block_size", "axis_name", "seed"),
    )(**fixed, damping=0.5, b1=0.8, every=4)
    matrix = jnp.asarray(symmetric(np.geomspace(50.0, 0.1, 10), 0), jnp.float32)
    found = [
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS, batch=matrix)[0]
        for tx in (injected, scale_by_low_rank_fisher(**fixed, damping=0.5, b1=0.8))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_one_conditional_no_callback_and_no_flat_leaf():
    params = {"w": jnp.ones((2, 3, 4)), "b": jnp.ones(3)}
    tx = scale_by_low_rank_fisher(lambda params, batch: lambda v: v, rank=2, num_steps=3)
    jaxpr = jax.make_jaxpr(lambda g, s: tx.update(g, s, g, batch=0.0))(params, tx.init(params))
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1
    assert "callback" not in str(jaxpr)
    assert "reshape" not in str(jaxpr)


def test_map_params_takes_the_eigenvectors_for_one_value():
    tx = scale_by_low_rank_fisher(dense, rank=2, num_steps=3)
    names = optax.tree.map_params(
        tx,
        lambda _, name: name,
        tx.init(PARAMS),
        {"a": "a", "b": "b"},
        transform_non_params=lambda _: 0,
    )
    assert sorted(map(str, jax.tree.leaves(names))) == ["0"] * 6 + ["a", "b"]


def test_serves_as_the_refinement_of_a_whole_run():
    fisher = fgo.curvature.ggn(lambda p, batch: batch["x"] @ p["w"])
    tx = fgo.target_acquisition(
        1e-2,
        warmup_steps=2,
        transform=scale_by_low_rank_fisher(fisher, rank=2, num_steps=4, every=3),
    )
    params = {"w": jnp.zeros((4, 3))}
    batch = {"x": jax.random.normal(jax.random.key(0), (8, 4))}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(
            jax.tree.map(jnp.ones_like, params), state, params, value=jnp.float32(1), batch=batch
        )
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=6))
    (params, _), _ = run((params, tx.init(params)))
    assert np.all(np.isfinite(params["w"]))
    assert np.all(params["w"] != 0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(rank=0), "rank must be an integer >= 1"),
        (dict(rank=8, num_steps=4), "num_steps= of at least 16"),
        (dict(block_size=20), "num_steps= of at least 40"),
        (dict(every=0), "every must be an integer >= 1"),
        (dict(damping=0.0), "damping must be a finite number > 0"),
        (dict(b1=1.0), r"b1 must lie in \[0, 1\)"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_low_rank_fisher(dense, **arguments)


def test_wrong_leaves():
    tx = scale_by_low_rank_fisher(dense)
    with pytest.raises(ValueError, match="split_real_and_imaginary"):
        tx.init(jnp.ones(2, jnp.complex64))
    with pytest.raises(ValueError, match=r"exclude the others with optax\.masked"):
        tx.init(jnp.ones(2, jnp.int32))


def test_a_moving_average_that_is_off_costs_nothing():
    for b1 in (None, 0.0):
        assert scale_by_low_rank_fisher(dense, b1=b1).init(jnp.ones(3)).first_moment == ()
