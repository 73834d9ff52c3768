"""Rates between phases, and what an adaptive decay does with what it is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.phases import rates
from tests.directions import Doubling

glide = jax.jit(rates.glide)


def progress(phase_step=0, phase_start=400, exponent=0.0, averaged=False):
    return rates.Progress(
        jnp.int32(phase_step),
        jnp.int32(phase_start),
        None,
        jnp.float32(exponent),
        averaged,
    )


def test_a_glide_is_even_on_a_log_scale():
    shares = jnp.float32([0.25, 0.5, 0.75])
    found = glide(jnp.float32(1.0), jnp.float32(1e-4), shares)
    np.testing.assert_allclose(found, [1e-1, 1e-2, 1e-3], rtol=1e-5)


def test_a_glide_from_zero_is_even_on_a_plain_scale_and_to_zero_it_is_at_once():
    shares = jnp.float32([0.25, 0.5, 1.0])
    rising = glide(jnp.float32(0.0), jnp.float32(4.0), shares)
    np.testing.assert_allclose(rising, 4.0 * shares, rtol=1e-6)
    np.testing.assert_array_equal(glide(jnp.float32(4.0), jnp.float32(0.0), shares), 0.0)


@pytest.mark.parametrize("length", [5, 20, 60])
def test_a_decay_to_zero_that_ends_within_the_hand_over_only_falls(length):
    phases = [
        fgo.acquisition(1.0, transform=Doubling.made(0.0, stretch=1.0)),
        fgo.execution(1.0, cut=0.5, decay=fgo.decays.linear(length)),
    ]
    tx = fgo.phased(phases, [fgo.triggers.after(3)], handover_steps=40)

    def step(state, _):
        state = tx.update(jnp.ones(2), state, jnp.ones(2))[1]
        return state, fgo.telemetry(state)["learning_rate"]

    told = np.asarray(jax.lax.scan(step, tx.init(jnp.ones(2)), None, length=80)[1])
    assert (np.diff(told) <= 0).all()
    assert told[3 + length] > 0
    np.testing.assert_array_equal(told[4 + length :], 0.0)


def test_a_glide_ends_on_its_target_bit_for_bit():
    rng = np.random.default_rng(0)
    entry, target = jnp.float32(rng.uniform(1e-5, 1.0, (2, 1000)))
    np.testing.assert_array_equal(glide(entry, target, jnp.float32(1.0)), target)
    np.testing.assert_array_equal(glide(entry, target, jnp.float32(1.5)), target)


def test_a_schedule_counts_the_steps_of_the_run_and_a_cut_is_what_goes():
    law = rates.peak(lambda step: step.astype(jnp.float32), cut=0.25)
    assert float(law(progress(phase_step=3, phase_start=7))) == 7.5


def test_from_a_rate_of_zero_the_next_phase_rises_evenly():
    # The same transform in both: only the rate is of interest.
    one = Doubling.made(0.0, stretch=1.0)
    phases = [fgo.acquisition(0.0, transform=one), fgo.reask(1.0, cut=0.0, transform=one)]
    tx = fgo.phased(phases, [fgo.triggers.after(1)], handover_steps=4)

    def step(state, gradient):
        updates, state = tx.update(gradient, state, jnp.ones(2))
        return state, (updates, fgo.telemetry(state)["learning_rate"])

    grads = jnp.ones((8, 2)).at[3].set(jnp.inf)
    start = tx.init(jnp.ones(2))
    updates, told = jax.jit(lambda grads: jax.lax.scan(step, start, grads)[1])(grads)
    np.testing.assert_allclose(told, [0, 0, 0.25, 0.25, 0.5, 0.75, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(updates[:, 0], [0, 0, -0.25, 0, -0.5, -0.75, -1, -1], rtol=1e-6)


@pytest.mark.parametrize(
    ("measured", "averaged", "own"),
    [
        (np.nan, False, 0.0),
        (-0.5, False, 0.0),
        (0.5, False, 0.5),
        (3.0, False, 1.0),
        (1.5, True, 0.5),
        (0.5, True, 0.0),
    ],
)
def test_an_adaptive_decay_takes_the_excess_over_its_onset_up_to_one(measured, averaged, own):
    decay = fgo.decays.adaptive(100)
    # The first step of a phase: its exponent is the mean.
    found = decay.exponent(progress(averaged=averaged), jnp.float32(measured))
    assert float(found) == pytest.approx(own, abs=1e-6)


def test_the_mean_exponent_makes_all_steps_together_one_power():
    decay, exponents = fgo.decays.adaptive(10), [1.0, 0.0, 0.25, 0.75, 0.5]
    mean, product = 0.0, 1.0
    for step, own in enumerate(exponents):
        mean = decay.exponent(progress(step, exponent=mean), jnp.float32(own))
        product *= ((10 + step) / (11 + step)) ** own
    factor = decay.factor(progress(len(exponents), exponent=float(mean)))
    assert float(factor) == pytest.approx(product, rel=1e-5)


def test_an_unknown_exponent_leaves_the_rate_a_number():
    decay = fgo.decays.adaptive(100)
    mean = jnp.float32(0.5)
    for step in range(1, 4):
        mean = decay.exponent(progress(step, exponent=mean), jnp.float32(jnp.nan))
    assert 0.0 < float(decay.factor(progress(4, exponent=mean))) < 1.0
