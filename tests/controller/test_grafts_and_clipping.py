"""The hand-over in numbers: what fills, what the new transform is given, how its graft fades."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.directions import Doubling

BEGINS, HANDOVER, STEPS, SKIPPED = 3, 4, 14, 5
CLIP = 2.0


def followed(keeps_scale):
    """Updates over -rate, transforms' states and clocks of one run with a bad step in it."""
    rising = Doubling.made(1.0, metric=lambda grads, state: 3.0 * grads, keeps_scale=keeps_scale)
    tx = fgo.phased(
        [
            fgo.acquisition(1.0, transform=Doubling.made(0.0, stretch=1.0)),
            fgo.reask(1.0, cut=0.0, transform=rising),
        ],
        [fgo.triggers.after(BEGINS - 1)],
        handover_steps=HANDOVER,
        clip_norm=CLIP,
    )
    grads = np.random.default_rng(0).standard_normal((STEPS, 3)).astype(np.float32)
    grads *= np.linspace(0.5, 3.0, STEPS)[:, None]
    clean = grads.copy()
    grads[SKIPPED] = np.inf

    def step(state, gradient):
        updates, state = tx.update(gradient, state, jnp.ones(3))
        return state, (updates, state.transforms, state.clock)

    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.asarray(grads))[1])
    updates, transforms, clock = jax.device_get(run(tx.init(jnp.ones(3))))
    lengths = np.linalg.norm(clean, axis=1, keepdims=True)
    clipped = clean * np.minimum(1.0, CLIP / lengths)
    return -updates, transforms[1], clock, np.delete(clipped, SKIPPED, 0).astype(np.float64)


@pytest.fixture(scope="module", params=[True, False], ids=["keeps its scale", "another scale"])
def run(request):
    return request.param, *followed(request.param)


def test_the_new_transform_is_filled_with_clipped_gradients_of_taken_steps(run):
    _, updates, state, clock, clipped = run
    np.testing.assert_array_equal(updates[SKIPPED], 0.0)
    taken = np.delete(np.arange(STEPS), SKIPPED)
    assert clock.handover_left[BEGINS - 1] == HANDOVER
    for number, at in enumerate(taken):
        seen = max(number + 1 - BEGINS, 0)
        assert state.count[at] == seen
        total = clipped[BEGINS : BEGINS + seen].sum(0)
        np.testing.assert_allclose(state.total[at], total, rtol=1e-5, atol=1e-6)
    assert state.count[SKIPPED] == state.count[SKIPPED - 1]


def test_its_graft_weighs_late_steps_more_and_fades_over_as_many_unless_scales_differ(run):
    keeps_scale, updates, _, _, clipped = run
    updates = np.delete(updates, SKIPPED, 0)
    # The old transform is the gradient itself, up to the end of the hand-over.
    end = BEGINS + HANDOVER
    np.testing.assert_allclose(updates[:end], clipped[:end], rtol=1e-5)
    sums = np.cumsum(clipped[BEGINS:], 0) * 2.0 ** np.arange(len(clipped) - BEGINS)[:, None]
    lengths = np.linalg.norm(clipped[BEGINS:], axis=1) / np.linalg.norm(sums, axis=1)
    graft = np.average(np.log(lengths[:HANDOVER]), weights=np.arange(1, HANDOVER + 1))
    since = np.arange(len(sums) - HANDOVER)
    weight = np.maximum(1 - since / HANDOVER, 0) if keeps_scale else np.ones(len(since))
    wanted = sums[HANDOVER:] * np.exp(weight * graft)[:, None]
    np.testing.assert_allclose(updates[end:], wanted, rtol=2e-5)


def test_a_phase_forced_back_takes_over_at_once_and_fills_nothing():
    first, second = Doubling.made(0.0, stretch=1.0), Doubling.made(1.0)
    tx = fgo.phased(
        [fgo.acquisition(1.0, transform=first), fgo.reask(1.0, transform=second)],
        [fgo.triggers.never()],
        handover_steps=HANDOVER,
    )
    start = tx.init(jnp.ones(3))
    driven = start.clock._replace(phase=jnp.int32(1), driver=jnp.int32(1))
    update = jax.jit(tx.update)
    _, back = update(jnp.ones(3), fgo.force_phase(start._replace(clock=driven), 0), jnp.ones(3))
    assert int(back.clock.handover_left) == 0
    assert int(back.clock.driver) == int(back.clock.phase) == 0
    _, after = update(jnp.ones(3), back, jnp.ones(3))
    assert int(after.transforms[0].count) == int(back.transforms[0].count) + 1
    assert int(after.transforms[1].count) == int(back.transforms[1].count)


# In bfloat16 a sum beyond 256 does not grow by ones, and in float16 these squares overflow.
CLIPPED = {"bfloat16": [1.0] * 40 + [16.0] + [1.0] * 40, "float16": [3e2, 3e2]}


@pytest.mark.parametrize("dtype", CLIPPED)
def test_the_norm_that_clips_is_that_of_float32(dtype):
    grads = {str(i): jnp.full(1, entry, dtype) for i, entry in enumerate(CLIPPED[dtype])}
    tx = fgo.phased([fgo.acquisition(1.0, transform=optax.identity())], [], clip_norm=1.0)
    updates, _ = jax.jit(tx.update)(grads, tx.init(grads), grads)
    squares = [np.square(np.asarray(x, np.float32)).sum() for x in updates.values()]
    assert sum(squares) ** 0.5 == pytest.approx(1.0, rel=5e-3)


def test_a_graft_beyond_half_precision_gives_the_update_of_float32():
    def last(dtype):
        phases = [
            fgo.acquisition(1e-3, transform=optax.scale_by_sign()),
            fgo.reask(1e-3, cut=0.0, transform=optax.identity()),
        ]
        tx = fgo.phased(phases, [fgo.triggers.after(2)], handover_steps=HANDOVER)
        grads = jnp.full(2, 1e-5, dtype)
        state = tx.init(grads)
        update = jax.jit(tx.update)
        for _ in range(3 * HANDOVER):
            updates, state = update(grads, state, grads)
        return np.asarray(updates, np.float32)

    np.testing.assert_allclose(last("float16"), last("float32"), rtol=0.02)


def test_a_run_may_be_resumed_with_a_shorter_handover():
    def made(handover_steps):
        phases = [
            fgo.acquisition(1e-2, transform=optax.scale_by_adam()),
            fgo.reask(1e-2, transform=optax.scale_by_rms()),
        ]
        return fgo.phased(phases, [fgo.triggers.after(3)], handover_steps=handover_steps)

    params, long, short = jnp.ones(4), made(40), made(10)
    state, taken = long.init(params), []
    for tx, steps in ((long, 32), (short, 20)):
        update = jax.jit(tx.update)
        for number in range(steps):
            updates, state = update(params, state, params)
            taken.append(int(state.clock.handover_left))
            assert np.isfinite(updates).all(), number
    assert (taken[31], taken[32]) == (12, 10)
    assert taken[-1] == 0
