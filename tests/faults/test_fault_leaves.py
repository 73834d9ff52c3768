"""Trees with odd leaves: frozen, empty, missing, scalar, of several dtypes, or too many."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.faults.digits import finite, params
from tests.problems import trees_equal

LABELS = {"layers_0": "frozen", "layers_2": "moving"}


def protocol(rate):
    return fgo.target_acquisition(rate, 10, transform=optax.scale_by_adam())


WRAPPED = {
    "partition": lambda rate: optax.partition(
        {"moving": protocol(rate), "frozen": optax.set_to_zero()}, LABELS
    ),
    "masked": lambda rate: optax.chain(
        optax.masked(optax.set_to_zero(), {"layers_0": True, "layers_2": False}),
        optax.masked(protocol(rate), {"layers_0": False, "layers_2": True}),
    ),
}


@pytest.mark.parametrize("way", WRAPPED)
def test_a_frozen_layer(way):
    tx, steps = WRAPPED[way](1e-2), 20
    update = jax.jit(tx.update)
    moved, state = params(), tx.init(params())
    grads = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), moved)
    for _ in range(steps):
        updates, state = update(grads, state, moved)
        moved = optax.apply_updates(moved, updates)
    assert trees_equal(moved["layers_0"], params()["layers_0"])
    assert (moved["layers_2"]["kernel"] < params()["layers_2"]["kernel"]).all()
    numbers = fgo.telemetry(state)
    assert int(numbers["total_step"]) == steps
    assert not bool(numbers["uphill"])


ODD = {
    "matrix": jnp.ones((3, 2)),
    "bfloat16": jnp.ones((2, 4), jnp.bfloat16),
    "vector": jnp.ones(3, jnp.bfloat16),
    "scalar": jnp.ones(()),
    "one": jnp.ones((1, 1)),
    "empty": jnp.zeros((0,)),
    "empty matrix": jnp.zeros((3, 0)),
    "missing": None,
    "more": {"nothing": {}, "missing": None},
}


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "float32"])
def test_odd_leaves(mixed):
    start = ODD if mixed else jax.tree.map(lambda p: p.astype(jnp.float32), ODD)
    tx = fgo.target_acquisition(
        1e-2, 3, handover_steps=4, weight_decay=0.1, clip_norm=1.0, average_weights=0.1,
        triggers={"acquisition": fgo.triggers.after(5), "reask": fgo.triggers.after(5)},
    )  # fmt: skip

    @jax.jit
    def run(carry):
        def step(carry, number):
            moved, state = carry
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number))
            grads = jax.tree.map(lambda p: (p * (1 + 0.1 * noise)).astype(p.dtype), moved)
            updates, state = tx.update(grads, state, moved, value=jnp.float32(1.0))
            return (optax.apply_updates(moved, updates), state), None

        return jax.lax.scan(step, carry, jnp.arange(30))[0]

    moved, state = run((start, tx.init(start)))
    assert int(state.clock.phase) == 2
    assert jax.tree.structure(moved) == jax.tree.structure(start)
    for new, old in zip(jax.tree.leaves(moved), jax.tree.leaves(start), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert (new < old).all()
    assert finite((moved, state.transforms, state.slow, state.average))
    assert finite(fgo.eval_params(state, moved))


@pytest.mark.slow
def test_two_thousand_leaves():
    def start(count):
        return {f"{i:04d}": jnp.ones((2, 2) if i % 2 else (3,)) for i in range(count)}

    # One phase, and no moments: compiling them at this number of leaves takes minutes.
    tx = fgo.phased(
        [fgo.acquisition(1e-2, 10, transform=optax.identity())],
        [],
        fgo.probes.gradient_stream(),
    )
    update = jax.jit(tx.update)
    many = start(2000)
    # XLA takes a minute for them. The benchmark `overhead` compiles and runs as many.
    update.lower(many, jax.eval_shape(tx.init, many), many)
    moved = start(200)
    state = tx.init(moved)
    for _ in range(5):
        updates, state = update(moved, state, moved)
        moved = jax.tree.map(lambda p, u: np.asarray(p) + np.asarray(u), moved, updates)
    assert all((leaf < 1).all() for leaf in moved.values())
    assert int(state.skipped_steps) == 0
