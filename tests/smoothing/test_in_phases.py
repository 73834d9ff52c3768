"""Slow momentum and average of the weights inside a run of phases with a bad step in it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.directions import Doubling

BEGINS, RAMP, STEPS, SKIPPED = 2, 6, 12, 7


@pytest.fixture(scope="module", params=[jnp.float32, jnp.bfloat16])
def run(request):
    """Shares and counts of the slow momentum after each step, parameters before it, last state."""
    plain = Doubling.made(0.0, stretch=1.0)
    one = fgo.precondition.Preconditioner(
        plain.init, plain.update, lambda grads, state: grads, momentum_dtype=request.param
    )
    phases = [
        fgo.acquisition(1e-2, transform=one),
        fgo.reask(1e-2, transform=one, slow_share=0.5),
    ]
    tx = fgo.phased(
        phases,
        [fgo.triggers.after(BEGINS - 1)],
        handover_steps=RAMP,
        average_weights=1.0,
    )

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (params + updates, state), (state.slow.share, state.slow.averaged_steps, params)

    grads = np.random.default_rng(0).standard_normal((STEPS, 3)).astype(np.float32)
    grads[SKIPPED] = np.nan
    scan = jax.jit(lambda carry, grads: jax.lax.scan(step, carry, grads))
    start = jnp.ones(3)
    (_, state), record = scan((start, tx.init(start)), grads)
    return *jax.device_get(record), jax.device_get(state)


def test_the_share_rises_over_a_hand_over_and_counts_taken_steps_of_its_phase(run):
    shares, counts, _, _ = run
    taken = np.arange(STEPS) != SKIPPED
    used = np.cumsum(taken & (np.arange(STEPS) >= BEGINS))
    np.testing.assert_array_equal(counts, used)
    before = np.maximum(used - 1, 0)
    np.testing.assert_allclose(shares, 0.5 * before / (before + RAMP), rtol=1e-6)


def test_the_average_is_over_the_parameters_of_taken_steps(run):
    _, _, params, state = run
    kept = np.delete(params, SKIPPED, 0)
    assert state.average.averaged_steps == STEPS - 1
    exact = state.average.average.dtype == jnp.float32
    averaged = np.asarray(state.average.average, np.float32)
    # In bfloat16 each of the steps may round by 2^-7.
    np.testing.assert_allclose(averaged, kept.mean(0), rtol=1e-5 if exact else STEPS * 2.0**-8)
    assert np.isfinite(np.asarray(state.slow.mean, np.float32)).all()
    assert state.slow.mean.dtype == state.average.average.dtype
    assert fgo.eval_params(state, jnp.ones(3)).dtype == jnp.float32


def test_half_precision_that_loses_small_steps_is_not_taken_over():
    init, update = optax.trace(0.9, accumulator_dtype=jnp.float16)
    own = fgo.precondition.Preconditioner(
        init, update, lambda grads, state: grads, momentum_dtype=jnp.float16
    )
    tx = fgo.phased(
        [fgo.Phase("constant", lambda progress: 1.0, own, slow_share=0.5)],
        [],
        average_weights=0.1,
    )
    state = tx.init(jnp.ones(3))
    assert state.average.average.dtype == state.slow.mean.dtype == jnp.float32
