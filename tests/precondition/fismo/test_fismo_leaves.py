"""What scale_by_fismo keeps true for every leaf, dtype, tree, transform and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fgo_jax.precondition import scale_by_fismo, scale_by_mousse
from tests.precondition.sequences import gradients, run
from tests.precondition.sharded import as_one

Numbers = optax.contrib.MuonDimensionNumbers

LEAVES = {
    "column": (4, 1),
    "conv": (2, 2, 2, 3),
    "empty": (0, 4),
    "long": (11, 3),
    "ones": (1, 1),
    "query": (3, 1, 4),
    "row": (1, 4),
    "scalar": (),
    "vector": (4,),
}
# A gradient of rank one, whose factors are singular, and one that is zero.
ONES = jax.tree.map(jnp.ones, LEAVES, is_leaf=lambda x: isinstance(x, tuple))
ZEROS = optax.tree.zeros_like(ONES)


def all_finite(tree):
    return all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("dtype", "unit", "damping"),
    [(jnp.bfloat16, False, 0.0), (jnp.float16, True, None), (jnp.float32, True, 0.0)],
)
def test_degenerate_leaves_zero_gradients_and_singular_factors(dtype, unit, damping):
    tx = scale_by_fismo(refresh_every=2, block_size=8, unit_gradients=unit, damping=damping)
    zeros, ones = (optax.tree.cast(tree, dtype) for tree in (ZEROS, ONES))
    updates, state = run(tx, [zeros, zeros, zeros, ones, ones, zeros, ones])
    for tree in updates[:3]:
        assert all(not np.any(u) for u in jax.tree.leaves(tree))
    assert all_finite((updates, state))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    dims = [[None if f is None else len(f) for f in leaf] for leaf in state.factors]
    assert dict(zip(LEAVES, dims, strict=True)) == {
        "column": [], "conv": [8, 3], "empty": [], "long": [None, 3], "ones": [],
        "query": [3, 4], "row": [], "scalar": [], "vector": [],
    }  # fmt: skip
    for factor in jax.tree.leaves(state.factors):
        np.testing.assert_allclose(np.trace(factor), len(factor), rtol=1e-5)


@pytest.mark.parametrize("number", [jnp.inf, jnp.nan])
def test_a_gradient_that_is_not_finite_leaves_the_statistics_of_its_matrix_alone(number):
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "stack": (2, 3, 4), "b": (3,)}
    numbers = {"w": Numbers(), "stack": Numbers(1, 2), "b": None}
    tx = scale_by_fismo(
        refresh_every=2, ns_steps=2, unit_gradients=True, weight_dimension_numbers=numbers
    )
    update = jax.jit(tx.update)
    clean = [
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        for _ in range(3)
    ]
    _, before = run(tx, clean[:2])
    bad = dict(clean[2], b=clean[2]["b"].at[1].set(number))
    bad["stack"] = bad["stack"].at[1, 0, 0].set(number)
    wanted, after = update(clean[2], before)  # at a refresh
    updates, state = update(bad, before)

    np.testing.assert_array_equal(updates["b"], 0.0)
    np.testing.assert_array_equal(updates["stack"][1], 0.0)
    np.testing.assert_array_equal(updates["w"], wanted["w"])
    np.testing.assert_allclose(updates["stack"][0], wanted["stack"][0], atol=1e-6)
    np.testing.assert_array_equal(state.first_moment["b"], before.first_moment["b"])
    np.testing.assert_array_equal(state.second_moment[0], before.second_moment[0])
    for kept, good, old in zip(
        jax.tree.leaves((state.factors[1], state.roots[1], state.first_moment["stack"])),
        jax.tree.leaves((after.factors[1], after.roots[1], after.first_moment["stack"])),
        jax.tree.leaves((before.factors[1], before.roots[1], before.first_moment["stack"])),
        strict=True,
    ):
        np.testing.assert_array_equal(kept[1], old[1])
        np.testing.assert_allclose(kept[0], good[0], atol=1e-6)
    assert all_finite((updates, state))


@pytest.mark.parametrize("unit", [False, True])
def test_gradients_whose_squares_overflow_or_vanish_keep_it_finite(unit):
    sizes = (1e30, 1e-30, 1.0, 1e30, 1e-3)
    grads = [{"w": jnp.full((2, 3), size), "b": jnp.full(3, size)} for size in sizes]
    updates, state = run(scale_by_fismo(refresh_every=2, unit_gradients=unit), grads)
    assert all_finite((updates, state))


def test_a_factor_of_the_gradients_cancels_with_unit_gradients():
    grads = [jnp.asarray(g, jnp.float32) for g in gradients((3, 5), 6, seed=2)]
    tx = scale_by_fismo(refresh_every=2, unit_gradients=True)
    plain, _ = run(tx, grads)
    # A power of two rounds nothing; eps is added to a norm of about one.
    small, _ = run(tx, [g / 64 for g in grads])
    np.testing.assert_allclose(np.stack(plain), np.stack(small), rtol=1e-4, atol=1e-5)


def test_axes_are_named_as_in_optax_and_wrong_ones_are_refused():
    params = {"qkv": jnp.ones((6, 3, 2, 2)), "embed": jnp.ones((5, 4)), "b": {"c": jnp.ones(3)}}
    numbers = {"qkv": Numbers((0,), (2, -1)), "embed": None, "b": None}  # the last is a prefix
    for given in (numbers, lambda tree: numbers):
        tx = scale_by_fismo(weight_dimension_numbers=given)
        state = tx.init(params)
        shapes = [[p.shape for p in leaf] for leaf in state.factors]
        assert shapes == [[], [], [(3, 6, 6), (3, 4, 4)]]  # in the order of the sorted keys
        kinds = jax.eval_shape(tx.update, params, state)
        assert kinds == jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, state)
        )
    for wrong, match in (
        ({**numbers, "b": Numbers(0, 1)}, r"does not have: give such leaves None"),
        ({**numbers, "embed": Numbers(0, 0)}, "must name each axis once"),
        ({**numbers, "embed": "rows"}, "must hold optax.contrib.MuonDimensionNumbers"),
    ):
        with pytest.raises(ValueError, match=match):
            scale_by_fismo(weight_dimension_numbers=wrong).init(params)


def test_trees_without_arrays_none_and_masked_leaves():
    tx = scale_by_fismo()
    for tree in ({}, (), None, {"a": None}, {"a": optax.MaskedNode()}):
        updates, state = tx.update(tree, tx.init(tree))
        assert updates == tree
        assert tx.metric(tree, state) == tree
    numbers = {"w": Numbers(), "v": Numbers()}
    masked = optax.masked(
        scale_by_fismo(weight_dimension_numbers=numbers), lambda p: {"w": True, "v": False}
    )
    grads = {"w": jnp.ones((2, 3)), "v": jnp.full((2, 2), 7.0)}
    updates, _ = run(masked, [grads])
    np.testing.assert_array_equal(updates[0]["v"], grads["v"])


def test_the_state_keeps_its_types_through_nested_conditionals():
    params = {"w": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones(4), "none": None}
    tx = scale_by_fismo(consistent_rms=0.2)
    state = tx.init(params)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jax.eval_shape(tx.init, params) == jax.eval_shape(lambda: state)
    assert jax.eval_shape(lambda: tx.init(abstract)) == jax.eval_shape(lambda: state)

    def keep(g, s):
        return g, s

    @jax.jit
    def step(g, s, outer, inner):
        nested = lambda g, s: jax.lax.cond(inner, tx.update, keep, g, s)  # noqa: E731
        return jax.lax.cond(outer, nested, keep, g, s)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        _, new = step(params, state, True, True)
    kinds = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (state, new)]
    assert kinds[0] == kinds[1]
    jaxpr = jax.make_jaxpr(tx.update)(params, state)
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1
    assert "callback" not in str(jaxpr)


def test_map_params_sees_the_moments_and_nothing_else():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    tx = scale_by_fismo(weight_dimension_numbers={"w": Numbers(), "b": None})
    state = run(tx, [params, params])[1]
    specs = optax.tree.map_params(
        tx, lambda _, name: name, state, {"w": "w", "b": "b"}, transform_non_params=lambda _: 0
    )
    assert sorted(map(str, jax.tree.leaves(specs))) == ["0", "0", "0", "0", "b", "w"]


def test_applying_the_metric_twice_is_the_update_where_the_polar_factor_is_known():
    """Of a matrix with equal singular values, in whatever metric, and of a vector."""
    q = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32))[0]
    # One step of X <- a X + ... with a = 1 alone: polar(M) = M / ||M||, here of norm 1 for 2.
    tx = scale_by_fismo(beta=0.0, adam_b1=0.0, ns_coeffs=(2.0, 0.0, 0.0), ns_steps=1)
    grads = {"w": 3.0 * q, "b": jnp.array([1.0, -2.0])}
    np.testing.assert_array_equal(tx.metric(grads, tx.init(grads))["w"], grads["w"])
    updates, state = run(tx, [grads])
    twice = tx.metric(tx.metric(grads, state), state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), twice, updates[0])


def test_injected_hyperparameters():
    static = ("ns_coeffs", "ns_steps", "block_size", "unit_gradients", "weight_dimension_numbers")
    make = optax.inject_hyperparams(scale_by_fismo, static_args=static)
    grads = [{"w": jnp.asarray(g, jnp.float32)} for g in gradients((3, 4), 5, seed=9)]
    plain, _ = run(scale_by_fismo(refresh_every=3, damping=0.1), grads)
    injected, _ = run(make(refresh_every=3, damping=0.1), grads)
    # Rates rounded to float32 before they are subtracted from 1.
    np.testing.assert_allclose(plain[-1]["w"], injected[-1]["w"], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ({"factor_decay": 1.1}, r"factor_decay must lie in \[0, 1\]"),
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
        ({"refresh_every": 0}, "refresh_every must be an integer >= 1"),
        ({"ns_steps": 0}, "ns_steps must be an integer >= 1"),
        ({"ns_coeffs": (1.0, 2.0)}, "ns_coeffs must be three numbers"),
        ({"ns_coeffs": ((1.0, 2.0, 3.0),)}, "for each of ns_steps=5 steps"),
        ({"consistent_rms": 0.0}, "consistent_rms must be a finite number > 0"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_fismo(**arguments)


def test_wrong_leaves():
    cases = {
        jnp.complex64: r"wrap it in .*split_real_and_imaginary.* fgo.average_weights\(0.1\)\)",
        jnp.int32: "masked",
    }
    for dtype, match in cases.items():
        with pytest.raises(ValueError, match=match):
            scale_by_fismo().init({"w": jnp.ones((2, 2), dtype)})


def test_sharded_parameters_give_the_result_of_one_device():
    specs = {"both": P("data", "model"), "kernel": P(None, "model", None), "stack": P(None, "data")}
    shapes = {"both": (16, 8), "kernel": (4, 4, 2), "stack": (2, 8, 4)}
    numbers = {"both": Numbers(), "kernel": Numbers(0, (1, 2)), "stack": Numbers(1, 2)}
    both = {"refresh_every": 2, "block_size": 4, "weight_dimension_numbers": numbers}
    # Mousse has Muon's five steps, which multiply rounding errors by up to 3.4^5.
    for tx, tolerance in (
        (scale_by_fismo(ns_steps=2, unit_gradients=True, **both), 1e-4),
        (scale_by_mousse(**both), 1e-3),
    ):
        for kind, _, *states in as_one(tx, shapes, specs, tolerance, lambda s: (s.first_moment,)):
            for state in states:
                rows, columns = state.factors[0]
                assert (rows.shape, columns.shape) == ((4, 4, 4), (2, 4, 4))
                if kind == AxisType.Explicit:
                    assert rows.sharding.spec[0] == "data"
                    assert columns.sharding.spec[0] == "model"
