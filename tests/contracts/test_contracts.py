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


@functools.cache
def fresh(row: Row):
    """A row's transformation, its compiled update and its first state: several tests' own."""
    tx = row.make(row.learning_rate)
    return tx, jax.jit(tx.update), tx.init(mixed_params())


def run(update, state, params, steps=5, **extra):
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
    states = [fresh(row)[2]]
    if isinstance(states[0], fgo.FgoState):
        states.append(fgo.restart(states[0]))
    for state in states:
        buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size]
        assert len(set(buffers)) == len(buffers)


@rows
def test_second_call_does_not_recompile(row: Row, caplog):
    # Called outside `jax.jit`: a conditional would else be compiled again at every step.
    tx, _, state = fresh(row)
    params = mixed_params()
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
    tx, _, state = fresh(row)
    mapped = optax.tree.map_params(tx, lambda leaf: leaf, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, mapped, state)


@pytest.mark.parametrize("row", [row for row in TABLE if row.factory], ids=str)
def test_equal_with_and_without_inject_hyperparams(row: Row):
    plain = run(*fresh(row)[1:], mixed_params(), **row.extras)
    injected = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    tx = injected(learning_rate=row.learning_rate, **row.kwargs)
    start = tx.init(mixed_params())
    # Under `jax.jit` the hyperparameters are traced in `init` too.
    assert describe(jax.eval_shape(tx.init, mixed_params())) == describe(start)
    params, state = run(jax.jit(tx.update), start, mixed_params(), **row.extras)
    assert float(state.hyperparams["learning_rate"]) == np.float32(row.learning_rate)
    # XLA folds a constant rate and multiplies by a traced one: equal to rounding.
    for atol, one, other in zip((1e-6, 1e-5), plain, (params, state.inner_state), strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), one, other
        )


@rows
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])  # the others run below
def test_types_are_stable_through_a_cond(row: Row, dtype: str):
    # Types are settled by tracing; `MultiSteps` runs an update inside a conditional.
    with jax.enable_x64(dtype == "float64"):
        params = mixed_params(jnp.dtype(dtype))
        tx = row.make(row.learning_rate)

        def step(updates, state):
            return tx.update(updates, state, params, **row.extras)

        def maybe(flag, *carry):
            return jax.lax.cond(flag, step, lambda *carry: carry, *carry)

        start = gradient_of(params, 0), jax.eval_shape(tx.init, params)
        assert describe(jax.eval_shape(maybe, True, *start)) == describe(start)


@rows
def test_init_on_shapes_and_on_nothing(row: Row):
    tx, _, state = fresh(row)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), mixed_params())
    assert describe(tx.init(shapes)) == describe(state)
    empty = {"nothing": (), "none": None}
    updates, state = tx.update(empty, tx.init(empty), empty, **row.extras)
    assert updates == empty
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(empty))


def finite_and_of_types(updates, state, params, before):
    assert describe((updates, state)) == describe((params, before))
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(updates))


@rows
def test_zero_gradient_gives_finite_updates(row: Row):
    _, update, state = fresh(row)
    params = mixed_params()
    for _ in range(3):
        before = state
        updates, state = update(optax.tree.zeros_like(params), state, params, **row.extras)
        assert finite_and_of_types(updates, state, params, before)


@rows
def test_float16_updates_are_finite(row: Row):
    # The type with the smallest range.
    params = mixed_params(jnp.float16)
    tx = row.make(row.learning_rate)
    start = tx.init(params)
    updates, state = jax.jit(tx.update)(gradient_of(params, 0), start, params, **row.extras)
    assert finite_and_of_types(updates, state, params, start)
