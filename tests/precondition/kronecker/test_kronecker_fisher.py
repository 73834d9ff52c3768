"""What scale_by_kronecker_fisher keeps true for every leaf, dtype, tree, transform and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from tests.precondition.sequences import gradients, run
from tests.precondition.sharded import as_one
from tests.problems import trees_equal

LEAVES = {
    "empty": (0, 4),
    "ones": (1, 1),
    "row": (1, 4),
    "column": (4, 1),
    "rank4": (3, 4, 1, 3),
    "prime": (11, 3),
    "blocks": (9, 3),
    "vector": (4,),
    "scalar": (),
}


@pytest.mark.parametrize(
    ("dtype", "power", "centred"),
    [(jnp.bfloat16, 0.5, False), (jnp.float16, 1.0, False), (jnp.bfloat16, 1.0, True)],
)
def test_degenerate_leaves_and_zero_gradients(dtype, power, centred):
    zeros = {k: jnp.zeros(s, dtype) for k, s in LEAVES.items()}
    ones = jax.tree.map(jnp.ones_like, zeros)
    tx = scale_by_kronecker_fisher(
        block_size=8, refresh_every=2, power=power, vector_factors=True, centred=centred
    )
    updates, state = run(tx, [zeros, zeros, zeros, ones, zeros, zeros])
    for tree in updates[:3]:
        assert all(not np.any(u) for u in jax.tree.leaves(tree))
    for x in jax.tree.leaves((updates, state)):
        assert np.all(np.isfinite(np.asarray(x, np.float32)))
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    for q in jax.tree.leaves(state.bases):
        gram = np.swapaxes(q, -1, -2) @ q
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(q.shape[-1]), q.shape), atol=1e-5)
    dims = [[f.shape[:-1] for f in leaf] for leaf in state.factors]
    assert dict(zip(sorted(LEAVES), dims, strict=True)) == {
        "empty": [], "ones": [], "row": [(4,)], "column": [(4,)], "rank4": [(3,), (4,), (3,)],
        "prime": [(3,)], "blocks": [(3, 3), (3, 3)], "vector": [(4,)], "scalar": [],
    }  # fmt: skip


def test_vectors_have_no_factor_unless_asked():
    params = {"row": jnp.ones((1, 6)), "vector": jnp.ones(5)}
    assert scale_by_kronecker_fisher().init(params).factors == ((), ())


def test_trees_without_arrays_none_and_masked_leaves():
    tx = scale_by_kronecker_fisher()
    for tree in ({}, (), None, {"a": None}, {"a": optax.MaskedNode()}):
        updates, state = tx.update(tree, tx.init(tree))
        assert updates == tree
        assert tx.metric(tree, state) == tree
    tree = {"a": None, "w": jnp.ones((2, 3)), "m": optax.MaskedNode()}
    updates, _ = run(tx, [tree])
    assert updates[0]["a"] is None
    assert updates[0]["w"].shape == (2, 3)

    masked = optax.masked(tx, lambda p: {"w": True, "v": False})
    grads = {"w": jnp.ones((2, 3)), "v": jnp.full((2, 2), 7.0)}
    updates, _ = run(masked, [grads])
    np.testing.assert_array_equal(updates[0]["v"], grads["v"])


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan])
def test_a_non_finite_leaf_keeps_its_statistics(value):
    tx = scale_by_kronecker_fisher(refresh_every=2)
    good = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones((2, 3))}
    bad = {"a": good["a"].at[0, 0].set(value), "b": good["b"]}
    _, before = run(tx, [good])
    updates, after = run(tx, [good, bad])
    np.testing.assert_array_equal(updates[1]["a"], 0.0)
    assert np.all(np.abs(updates[1]["b"]) > 0)
    for field in ("first_moment", "second_moment"):
        kept, was = getattr(after, field), getattr(before, field)
        np.testing.assert_array_equal(kept[0], was[0])
        assert not np.array_equal(kept[1], was[1])
    assert trees_equal(after.factors[0], before.factors[0])
    updates, after = run(tx, [good, bad, good, bad])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((updates, after)))


def test_refreshes_do_not_amplify_rounding_in_a_leaf_much_longer_than_wide():
    grads = np.stack(list(gradients((160, 8), 24, seed=3))).astype(np.float32)
    rounded = grads * (1 + 1e-7 * np.random.default_rng(4).normal(size=grads.shape))
    tx = scale_by_kronecker_fisher()

    @jax.jit
    def last(grads):
        def step(state, g):
            u, state = tx.update(g, state)
            return state, u

        return jax.lax.scan(step, tx.init(grads[0]), grads)[1][-1]

    expected = last(grads)
    off = np.linalg.norm(last(rounded.astype(np.float32)) - expected)
    assert off < 1e-4 * np.linalg.norm(expected)


def test_rounded_bases_do_not_wear_out_the_first_moment():
    """A constant gradient, whose mean is itself in any basis: 150 refreshes leave it so."""
    tx = scale_by_kronecker_fisher(b1=0.99, refresh_every=1, factor_dtype=jnp.bfloat16)
    grads = {"w": jnp.float32(next(gradients((12, 8), 1, seed=4)))}
    state = tx.init(grads)
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 150, lambda _, s: tx.update(grads, s)[1], s))(
        state
    )
    left, right = (q.astype(jnp.float32) for q in state.bases[0])
    wanted = (1 - 0.99**150) * left.T @ grads["w"] @ right
    np.testing.assert_allclose(state.first_moment[0], wanted, atol=2e-3 * jnp.abs(wanted).max())


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_state_keeps_its_types_through_nested_conditionals(dtype):
    params = {"w": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones(4), "none": None}
    tx = scale_by_kronecker_fisher(momentum_dtype=dtype, factor_dtype=dtype)
    state = tx.init(params)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert jax.eval_shape(tx.init, params) == jax.eval_shape(lambda: state)
    assert jax.eval_shape(lambda: tx.init(abstract)) == jax.eval_shape(lambda: state)
    stored = (*state.first_moment, *jax.tree.leaves((state.factors, state.bases)))
    assert {x.dtype for x in stored} == {jnp.dtype(dtype or jnp.float32)}
    assert {v.dtype for v in state.second_moment} == {jnp.dtype(jnp.float32)}

    def keep(g, s):
        return g, s

    @jax.jit
    def step(g, s, outer, inner):
        nested = lambda g, s: jax.lax.cond(inner, tx.update, keep, g, s)  # noqa: E731
        return jax.lax.cond(outer, nested, keep, g, s)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        _, new = step(params, state, True, True)
    assert int(new.fisher_step) == 1
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type), state, new
    )
    assert all(jax.tree.leaves(same))


def test_factors_in_bfloat16_change_an_update_by_its_rounding():
    grads = [jnp.asarray(g, jnp.float32) for g in gradients((6, 8), 12, seed=3)]
    options = {"corrected": False, "refresh_every": 4}
    exact, _ = run(scale_by_kronecker_fisher(**options), grads)
    rounded, state = run(scale_by_kronecker_fisher(factor_dtype=jnp.bfloat16, **options), grads)
    assert {f.dtype for f in state.factors[0]} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(exact, rounded, strict=True):
        # A basis that is off by 2^-8 mixes directions by that much.
        assert np.linalg.norm(a - b) < 10 * 2.0**-8 * np.linalg.norm(a)


def test_the_first_basis_is_that_of_the_unrounded_factor():
    """The longer side of the kernel has a null space, which the rounding of a factor would fill."""
    (gradient,) = (jnp.asarray(g, jnp.float32) for g in gradients((4, 12), 1, seed=3))
    _, exact = run(scale_by_kronecker_fisher(), [gradient])
    _, rounded = run(scale_by_kronecker_fisher(factor_dtype=jnp.bfloat16), [gradient])
    for a, b in zip(exact.bases[0], rounded.bases[0], strict=True):
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)


def test_float64_gradients_keep_their_dtype_and_float32_statistics():
    with jax.enable_x64(True):
        g = jnp.ones((3, 4), jnp.float64)
        tx = scale_by_kronecker_fisher()
        updates, state = run(tx, [g, g])
        assert updates[-1].dtype == jnp.float64
        assert {x.dtype for x in jax.tree.leaves(state)} == {np.dtype("f4"), np.dtype("i4")}


def test_one_conditional_and_no_callback():
    params = {"w": jnp.ones((3, 4)), "k": jnp.ones((2, 3, 4)), "b": jnp.ones(3)}
    tx = scale_by_kronecker_fisher()
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params))
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 1
    assert "callback" not in str(jaxpr)


def test_map_params_takes_no_field_for_one_that_is_shaped_like_the_parameters():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    one = scale_by_kronecker_fisher(centred=True)
    for tx in (one, optax.chain(optax.masked(one, lambda p: {"w": True, "b": True}))):
        state = run(tx, [params, params])[1]
        same = optax.tree.map_params(tx, lambda x: x, state)
        assert jax.tree.structure(same) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, same, state)
        specs = optax.tree.map_params(
            tx, lambda _, name: name, state, {"w": "w", "b": "b"}, transform_non_params=lambda _: 0
        )
        assert set(jax.tree.leaves(specs)) == {0}


def test_injected_hyperparameters():
    make = optax.inject_hyperparams(
        scale_by_kronecker_fisher, static_args=("power", "block_size", "vector_factors")
    )
    grads = [{"w": jnp.asarray(g, jnp.float32)} for g in gradients((3, 4), 7, seed=9)]
    plain, _ = run(scale_by_kronecker_fisher(refresh_every=3), grads)
    injected, _ = run(make(refresh_every=3), grads)
    # Rates rounded to float32 before they are subtracted from 1, through the same divisions.
    np.testing.assert_allclose(plain[-1]["w"], injected[-1]["w"], atol=2e-3)

    with pytest.raises(ValueError, match=r"power decides .* static_args"):
        run(optax.inject_hyperparams(scale_by_kronecker_fisher)(), grads)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\)"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\)"),
        ({"factor_decay": float("nan")}, "factor_decay must lie"),
        ({"eps": -1e-8}, "eps must be a finite number >= 0"),
        ({"refresh_every": 0}, "refresh_every must be an integer >= 1"),
        ({"refresh_every": 2.5}, "refresh_every must be an integer >= 1"),
        ({"block_size": 0}, "block_size must be an integer >= 1"),
        ({"power": 1.5}, r"power must lie in \[0, 1\]"),
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
        (
            {"factor_decay": 0.9, "factor_dtype": "float16"},
            "factor_dtype must be float32, float64 or bf",
        ),
        ({"momentum_dtype": jnp.int32}, "or bfloat16, got int32: others"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        scale_by_kronecker_fisher(**arguments)


def test_wrong_leaves():
    tx = scale_by_kronecker_fisher()
    with pytest.raises(ValueError, match="split_real_and_imaginary"):
        tx.init({"w": jnp.ones((2, 2), jnp.complex64)})
    with pytest.raises(ValueError, match=r"exclude the others with optax\.masked"):
        tx.init({"w": jnp.ones((2, 2), jnp.int32)})


def test_sharded_parameters_give_the_result_of_one_device():
    """Shapes and tolerance as for the reference: no basis is left to the rounding."""
    specs = {"both": P("data", "model"), "kernel": P(None, "model", None)}
    shapes = {"both": (8, 8), "kernel": (3, 4, 5)}

    def read(state):
        moments = state.first_moment, state.second_moment
        return tuple(dict(zip(sorted(shapes), each, strict=True)) for each in moments)

    tx = scale_by_kronecker_fisher(refresh_every=2)
    *_, (*_, state) = as_one(tx, shapes, specs, 1e-3, read)
    # With automatic axes the partitioner may split them, as long as nobody pins them.
    assert all(
        x.sharding.is_fully_replicated for x in jax.tree.leaves((state.factors, state.bases))
    )

    # Matrices along the last axis of a leaf, the first one of its stack.
    def turned(state):
        moments = state.first_moment, state.second_moment
        return tuple({"cube": jnp.moveaxis(each[0], 0, 2)} for each in moments)

    tx = scale_by_kronecker_fisher(
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(0, 1)
    )
    spec = {"cube": P(None, None, "data")}
    for _, _, first, _ in as_one(tx, {"cube": (4, 4, 4)}, spec, 1e-3, turned):
        assert first.first_moment[0].addressable_shards[0].data.shape == (1, 4, 4)
