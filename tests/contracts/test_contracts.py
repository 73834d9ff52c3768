"""Contracts beyond those that optax ships (test_as_shipped.py), on leaves of every rank."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.contracts.table import TABLE, Row

rows = pytest.mark.parametrize("row", TABLE, ids=str)


def mixed_params(dtype=jnp.float32):
    # Every rank, and two lengths of axis: each length is a decomposition more to compile.
    return {
        "matrix": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3).astype(dtype),
        "vector": jnp.asarray([0.5, -0.5, 2.0], dtype),
        "scalar": jnp.asarray(1.5, dtype),
        "nested": (jnp.ones((2, 2, 3), dtype),),
    }


def gradient_of(params, number):
    """Some gradient, different at every step."""
    return jax.tree.map(lambda p: (p * 0.5 + 0.1 * jnp.sin(1.0 + number)).astype(p.dtype), params)


def run(tx, params, steps=5, **extra):
    update = jax.jit(tx.update)
    state = tx.init(params)
    for number in range(steps):
        updates, state = update(gradient_of(params, number), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def describe(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(x.shape, x.dtype, x.weak_type) for x in leaves]


@rows
def test_a_fresh_state_can_be_donated(row: Row):
    # XLA refuses a buffer that a donated state holds in two places.
    tx = row.make(row.learning_rate)
    params = jax.tree.map(jnp.copy, mixed_params())
    states = [tx.init(params)]
    if isinstance(states[0], fgo.FgoState):
        states.append(fgo.restart(states[0]))
    for state in states:
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
        assert len(set(buffers)) == len(buffers)


@rows
def test_second_call_does_not_recompile(row: Row, caplog):
    # Called outside `jax.jit`: a conditional would else be compiled again at every step.
    tx = row.make(row.learning_rate)
    params = mixed_params()
    state = jax.jit(tx.init)(params)
    compilations = []
    witness = jax.jit(lambda x: -x)  # Operations that an earlier test compiled are not reported.
    for number in range(3):
        caplog.clear()
        grads = gradient_of(params, number)
        with jax.log_compiles():
            witness(grads["scalar"])
            updates, state = tx.update(grads, state, params, **row.extras)
        compilations.append([r.getMessage() for r in caplog.records if "Compiling" in r.message])
        params = optax.apply_updates(params, updates)
    assert compilations[0]
    assert compilations[1:] == [[], []]


@rows
def test_map_params_with_identity_is_a_no_op(row: Row):
    tx = row.make(row.learning_rate)
    state = tx.init(mixed_params())
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, mapped, state)


@pytest.mark.parametrize("row", [row for row in TABLE if row.factory], ids=str)
def test_equal_with_and_without_inject_hyperparams(row: Row):
    plain, _ = run(row.make(row.learning_rate), mixed_params(), **row.extras)
    injected = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    inner, state = run(
        injected(learning_rate=row.learning_rate, **row.kwargs), mixed_params(), **row.extras
    )
    assert float(state.hyperparams["learning_rate"]) == np.float32(row.learning_rate)
    # XLA folds a constant rate and multiplies by a traced one: equal to rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, inner)


@rows
@pytest.mark.parametrize("dtype", ["float16", "float64"])  # the others are shipped
def test_updates_keep_the_parameters_dtype(row: Row, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        params = mixed_params(jnp.dtype(dtype))
        tx = row.make(row.learning_rate)
        given = (gradient_of(params, 0), tx.init(params), params)
        update = jax.jit(functools.partial(tx.update, **row.extras))
        # Types are settled by tracing. The type with the smallest range runs as well.
        updates, _ = (update if dtype == "float16" else functools.partial(jax.eval_shape, update))(
            *given
        )
        assert all(leaf.dtype == jnp.dtype(dtype) for leaf in jax.tree.leaves(updates))
        if dtype == "float16":
            assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates))


@rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_state_is_stable_through_a_double_cond(row: Row, dtype: str):
    tx = row.make(row.learning_rate)
    params = mixed_params(jnp.dtype(dtype))
    state = tx.init(params)

    def step(state):
        return tx.update(gradient_of(params, 0), state, params, **row.extras)[1]

    def maybe(flag, state):
        return jax.lax.cond(flag, step, lambda state: state, state)

    # Types are settled by tracing; `MultiSteps` below runs an update inside a conditional.
    after = jax.eval_shape(lambda flag, state: maybe(flag, maybe(flag, state)), True, state)
    assert describe(after) == describe(state)


@rows
def test_init_on_shapes_and_on_nothing(row: Row):
    tx = row.make(row.learning_rate)
    params = mixed_params()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert describe(tx.init(shapes)) == describe(tx.init(params))
    empty = {"nothing": (), "none": None}
    updates, state = tx.update(empty, tx.init(empty), empty, **row.extras)
    assert updates == empty
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(empty))


@rows
def test_zero_gradient_gives_finite_updates(row: Row):
    tx = row.make(row.learning_rate)
    params = mixed_params()
    zeros = optax.tree.zeros_like(params)
    state = tx.init(params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(zeros, state, params, **row.extras)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates))
