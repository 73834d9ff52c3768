"""Long runs, counters at their end, ensembles, and faults in the middle of a hand-over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.faults.digits import finite
from tests.problems import trees_equal

START = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
HANDOVER = 10
LARGEST = np.iinfo(np.int32).max


def two(**options):
    """Adam hands over to a momentum at step 5."""
    phases = [
        fgo.acquisition(1e-2, transform=optax.scale_by_adam()),
        fgo.reask(1e-2, cut=0.0, transform=optax.trace(0.9), slow_share=0.5),
    ]
    return fgo.phased(
        phases, [fgo.triggers.after(4)], fgo.probes.gradient_stream(pairs=4, width=64),
        handover_steps=HANDOVER, average_weights=0.1, **options,
    )  # fmt: skip


TX = two()


def gradient(params, number, noise=0.1):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), number), 2)
    return {
        name: leaf + noise * jax.random.normal(key, leaf.shape)
        for key, (name, leaf) in zip(keys, params.items(), strict=True)
    }


@jax.jit
def update(params, state, number, factor=1.0):
    grads = jax.tree.map(lambda g: factor * g, gradient(params, number))
    updates, state = TX.update(grads, state, params, value=jnp.float32(1.0))
    return optax.apply_updates(params, updates), state


def run(params, state, steps, factor=1.0):
    for number in steps:
        params, state = update(params, state, number, factor)
    return params, state


def at_their_end(state, left=3):
    """The state with every counter a little below the largest."""
    counters = {
        "total_step", "phase_step", "count", "averaged_steps", "skipped_steps", "evaluations",
        "held",
    }  # fmt: skip

    def last(path, leaf):
        name = getattr(path[-1], "name", None)
        return jnp.full_like(leaf, LARGEST - left) if name in counters else leaf

    return jax.tree_util.tree_map_with_path(last, state)


def test_a_phase_still_ends_when_its_counter_stands():
    _, state = run(START, at_their_end(TX.init(START), left=0), range(1))
    assert int(state.clock.phase) == 1


@pytest.mark.parametrize("factor", [1.0, np.nan])
def test_counters_saturate(factor):
    params, state = run(START, TX.init(START), range(30))
    assert int(state.clock.driver) == 1
    ended = at_their_end(state)
    params, after = run(params, ended, range(30, 42), factor)
    for (path, leaf), old in zip(
        jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(ended), strict=True
    ):
        if leaf.dtype == jnp.int32 and leaf.ndim == 0:
            # None falls back, but those that count up to a small number and begin again.
            kept = leaf >= old or 0 <= int(leaf) < 10
            assert kept, jax.tree_util.keystr(path)
    assert finite((params, after.transforms, after.slow, after.average, after.fgo_learning_rate))
    assert int(after.clock.phase) == 1
    if np.isnan(factor):
        assert int(after.skipped_steps) == LARGEST
    else:
        assert int(after.clock.total_step) == LARGEST
        assert not trees_equal(params, START)


def test_an_ensemble():
    members = 3
    factors = np.ones((12, members), np.float32)
    factors[6, 1] = np.nan
    stacked = jax.tree.map(lambda p: np.stack([p * (1 + i) for i in range(members)]), START)
    step = jax.jit(jax.vmap(update, in_axes=(0, 0, None, 0)))
    together = stacked, jax.jit(jax.vmap(TX.init))(stacked)
    for number, factor in enumerate(factors):
        together = step(*together, number, factor)
    together = jax.device_get(together)
    np.testing.assert_array_equal(together[1].skipped_steps, [0, 1, 0])
    for i in range(members):
        alone = jax.tree.map(lambda p: p[i], stacked)  # noqa: B023
        alone = alone, TX.init(alone)
        for number, factor in enumerate(factors):
            alone = update(*alone, number, factor[i])
        member = jax.tree.map(lambda x: x[i], together)  # noqa: B023
        # Members run in one program, and alone in another: roundings differ.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), member[0], alone[0]
        )
        assert int(member[1].clock.total_step) == int(alone[1].clock.total_step)
        assert finite(member[0])


def test_a_restart_in_mid_hand_over():
    params, state = run(START, TX.init(START), range(5 + HANDOVER // 2))
    assert int(state.clock.handover_left) == HANDOVER // 2
    state = fgo.restart(state)
    phases, sizes = [], []
    for number in range(60):
        before = params
        params, state = update(params, state, number)
        phases.append(int(state.clock.phase))
        moves = jax.tree.map(lambda a, b: a - b, params, before)
        sizes.append(float(optax.tree.norm(moves)))
    # The hand-over is whole again, and no size jumps.
    assert phases.index(1) == 4
    assert int(state.clock.driver_since) == 5 + HANDOVER
    sizes = np.asarray(sizes)
    assert (sizes[1:] < 2 * sizes[:-1]).all()
    assert (sizes[1:30] > 0.3 * sizes[0]).all()
    assert int(state.skipped_steps) == 0


def test_nan_in_mid_hand_over():
    middle = 5 + HANDOVER // 2
    clean = run(START, TX.init(START), range(40))
    params, state = run(START, TX.init(START), range(middle))
    params, state = run(params, state, [0] * 7, np.nan)
    params, state = run(params, state, range(middle, 40))
    assert int(state.skipped_steps) == 7
    assert trees_equal((params, state._replace(skipped_steps=jnp.int32(0))), clean)


@pytest.mark.slow
def test_a_very_long_scan():
    tx, steps = fgo.target_acquisition(0.02, 100, average_weights=0.1), 200_000

    # Drawn at once, which takes less time than so many keys.
    noise = {
        name: jax.random.normal(jax.random.key(i), (steps, *leaf.shape))
        for i, (name, leaf) in enumerate(START.items())
    }

    @jax.jit
    def whole(params, noise):
        def step(carry, noise):
            params, state = carry
            value = sum(jnp.sum(leaf**2) for leaf in params.values()) / 2
            grads = jax.tree.map(jnp.add, params, noise)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        params, state = jax.lax.scan(step, (params, tx.init(params)), noise)[0]
        return params, state, fgo.telemetry(state), fgo.eval_params(state, params)

    params, state, numbers, averaged = whole(START, noise)
    assert int(numbers["total_step"]) == steps
    assert int(numbers["phase"]) == 2
    assert int(numbers["skipped_steps"]) == 0
    assert not bool(numbers["uphill"])
    assert finite((params, state.transforms, state.slow, state.average))
    assert max(np.abs(leaf).max() for leaf in averaged.values()) < 0.05
