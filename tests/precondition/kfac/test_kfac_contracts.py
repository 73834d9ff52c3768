"""What scale_by_kfac keeps true for every tree, dtype and transform.

The table of tests/contracts trains trees that belong to no Flax model, and passes no batch. So the
contracts are asked here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.precondition.kfac.small_model import finite, make, predict, problem


@jax.jit
def loss(params, batch):
    labels = jnp.arange(8) % 3
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, batch), labels).mean()


def train(tx, params, state, x, steps):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params, batch=x)
        return optax.apply_updates(params, optax.tree.scale(-0.1, updates)), state

    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1
    return params, state


def test_resumes_from_a_checkpoint_bit_for_bit():
    params, x = problem()
    tx = make(factors_every=2, refresh_every=3)
    start = tx.init(params)
    whole = train(tx, params, start, x, 9)
    half = jax.tree.map(np.asarray, train(tx, params, start, x, 4))
    other = make(factors_every=2, refresh_every=3)  # of a new process
    resumed = train(other, *jax.tree.map(jnp.asarray, half), x, 5)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert loss(whole[0], x) < loss(params, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_state_keeps_its_types_through_nested_conditionals(dtype):
    params, x = problem(dtype)
    tx = make(b1=0.9)
    state = tx.init(params)
    abstract = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert jax.eval_shape(lambda: tx.init(abstract)) == jax.eval_shape(lambda: state)

    def keep(g, s):
        return g, s

    def step(g, s, outer, inner):
        def take(g, s):
            return tx.update(g, s, params, batch=x, nobody_knows_this=1)

        nested = lambda g, s: jax.lax.cond(inner, take, keep, g, s)  # noqa: E731
        return jax.lax.cond(outer, nested, keep, g, s)

    updates, new = jax.eval_shape(step, params, state, True, True)
    types = lambda t: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(t)]  # noqa: E731
    assert types(new) == types(jax.eval_shape(lambda: state))
    assert types(updates) == types(params)


def test_low_precision_parameters_have_float32_statistics_and_finite_updates():
    params, x = problem(jnp.bfloat16)
    tx = make()
    updates, state = jax.jit(tx.update)(params, tx.init(params), params, batch=x)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {s.dtype.name for s in jax.tree.leaves(state)} == {"float32", "int32", "uint32"}
    assert finite((updates, state))


def test_two_conditionals_and_no_callback():
    params, x = problem()
    tx = make()
    with jax.numpy_dtype_promotion("strict"):
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params, batch=x)
    assert sum(eqn.primitive.name == "cond" for eqn in jaxpr.eqns) == 2
    assert "callback" not in str(jaxpr)


def test_trees_without_arrays_and_map_params():
    params, _ = problem()
    tx = make(b1=0.9)
    for tree in ({}, None, {"a": None}, {"a": optax.MaskedNode()}):
        state = tx.init(tree)
        updates, after = tx.update(tree, state)
        assert updates == tree
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert tx.metric(tree, state) == tree
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda leaf: leaf, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # so that the state can be donated


def test_a_gradient_that_is_not_finite_stops_its_layer_alone():
    params, x = problem()
    tx = make(b1=0.9)
    update = jax.jit(tx.update)
    grads = jax.jit(jax.grad(loss))(params, x)
    bad = jax.tree.map(np.array, grads)
    bad["Dense_0"]["kernel"][1, 2] = np.inf
    _, state = update(grads, tx.init(params), params, batch=x)
    updates, after = update(bad, state, params, batch=x)
    assert finite((updates, after))
    for name in ("kernel", "bias"):
        assert not np.any(updates["Dense_0"][name])
        np.testing.assert_array_equal(
            after.direction["Dense_0"][name], state.direction["Dense_0"][name]
        )
    assert all(np.any(u) for u in jax.tree.leaves(updates["Dense_1"]))


def test_a_batch_that_is_not_finite_leaves_all_statistics():
    params, x = problem()
    tx = make(burn_in=0, factors_every=1, refresh_every=2)
    update = jax.jit(tx.update)
    _, fresh = update(params, tx.init(params), params, batch=x * jnp.nan)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(fresh.roots))
    _, state = update(params, fresh, params, batch=x)
    _, after = update(params, state, params, batch=x.at[0, 0].set(jnp.inf))
    assert finite(after)
    # The second layer's input, tanh of it, is finite.
    jax.tree.map(np.testing.assert_array_equal, state.factors[0], after.factors[0])


class Odd(nn.Module):
    """Inputs of dimension one, a layer without gradient, one that is never called."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(1, name="narrow")(x))
        frozen = jax.lax.stop_gradient(nn.Dense(3, name="frozen")(x))
        x = nn.Dense(3, name="out")(x) + frozen
        if self.is_initializing():
            nn.Dense(2, name="idle")(x)
            self.param("empty", nn.initializers.ones, (0, 4))
        return x


def test_degenerate_layers_have_finite_updates():
    x = jnp.ones((4, 2))  # all examples alike: A has rank one
    params = jax.jit(Odd().init)(jax.random.key(0), x)["params"]

    def fn(p, x):
        return Odd().apply({"params": p}, x)

    for damping in (0.0, 1e-3):
        tx = fgo.scale_by_kfac(fn, "squared_error", damping=damping)
        update = jax.jit(tx.update)
        state = tx.init(params)
        grads = jax.jit(jax.grad(lambda p: jnp.mean((fn(p, x) - 1.0) ** 2)))(params)
        for g in (grads, jax.tree.map(jnp.zeros_like, params), params):
            updates, state = update(g, state, params, batch=x)
            assert finite((updates, state))
    assert not np.any(state.factors[0][0][1])  # G of the frozen layer, the first by name
    assert not np.any(updates["idle"]["kernel"])


def test_injected_hyperparameters():
    params, x = problem()
    static = (
        "predict_fn", "loss", "approximation", "diagonal", "layers", "weights", "block_size",
        "axis_name", "seed",
    )  # fmt: skip
    tx = optax.inject_hyperparams(fgo.scale_by_kfac, static_args=static)(
        predict_fn=predict, diagonal="unread"
    )
    plain = fgo.scale_by_kfac(predict, diagonal="unread")
    ours, _ = jax.jit(tx.update)(params, tx.init(params), params, batch=x)
    theirs, _ = jax.jit(plain.update)(params, plain.init(params), params, batch=x)
    # Rates rounded to float32, through damped inverses.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def test_the_protocol_hands_over_to_it():
    params, x = problem()
    tx = fgo.target_acquisition(1e-2, warmup_steps=2, transform=make(), total_steps=60)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(params, state, params, value=1.0, batch=x)
    assert finite(updates)
    masked = optax.masked(tx, {k: k != "unread" for k in params})
    jax.eval_shape(lambda p: masked.update(p, masked.init(p), p, batch=x, probe_params=p), params)
