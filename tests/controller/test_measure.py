"""What a probe is given, and when its signals are new: a probe that keeps what it sees."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from tests.directions import Doubling

BEGINS, HANDOVER, STEPS, EVERY = 5, 4, 20, 2
TAKES_OVER = BEGINS + HANDOVER
SKIPPED = 14


class Seen(NamedTuple):
    evaluations: Any
    window: Any  # measurements since the window began
    row: Any
    bits: Any


def witness():
    """Measures every second step, and reads five at every measurement."""
    zero = jnp.zeros([], jnp.int32)

    def measure(inputs, state):
        bits = jax.random.bits(inputs.key, dtype=jnp.uint32)
        return Seen(state.evaluations + 1, state.window + 1, inputs.rows, bits)

    return fgo.probes.Probe(
        signals=("five",),
        init=lambda params: Seen(zero, zero, jnp.zeros(3), jnp.zeros([], jnp.uint32)),
        due=lambda state, step: step % EVERY == 0,
        measure=measure,
        read=lambda state: {"five": fgo.probes.Estimate(jnp.float32(5), jnp.float32(0))},
        renew=lambda state: state._replace(window=zero),
    )


@pytest.fixture(scope="module")
def runs():
    """The probe's state, telemetry and phases after each step, by seed."""

    def followed(seed):
        metric = Doubling.made(1.0, metric=lambda grads, state: 3.0 * grads)
        patient = fgo.triggers.above("five", 1.0, patience=3)
        tx = fgo.phased(
            [
                fgo.acquisition(1e-3, transform=Doubling.made(0.0, stretch=1.0)),
                fgo.reask(1e-3, transform=metric),
            ],
            [patient],
            witness(),
            handover_steps=HANDOVER,
            seed=seed,
        )

        def step(state, number):
            gradient = jnp.where(number == SKIPPED, jnp.nan, jnp.full(3, number + 1.0))
            validation = jnp.where(number % 3 == 0, number.astype(jnp.float32), jnp.nan)
            _, state = tx.update(gradient, state, jnp.ones(3), validation_value=validation)
            return state, (state.probe_state, fgo.telemetry(state))

        return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(STEPS))[1])(
            tx.init(jnp.ones(3))
        )

    return {seed: jax.device_get(followed(seed)) for seed in (0, 1)}


def test_a_signal_is_new_only_at_the_step_that_measured_it(runs):
    _, told = runs[0]
    # Three measurements, at steps 0, 2 and 4, and not three steps.
    assert told["started/reask"][-1] == BEGINS


def test_every_measurement_has_a_key_of_its_own_from_the_seed(runs):
    bits = {seed: seen.bits[:SKIPPED:EVERY] for seed, (seen, _) in runs.items()}
    assert len(set(bits[0])) == len(bits[0])
    assert not set(bits[0]) & set(bits[1])


def test_a_new_driver_begins_a_new_window_in_its_own_metric(runs):
    seen, _ = runs[0]
    windows = seen.window[: SKIPPED - 1 : EVERY]
    steps = np.arange(0, SKIPPED - 1, EVERY)
    # It takes over with the update after TAKES_OVER ones.
    old = steps < TAKES_OVER
    np.testing.assert_array_equal(windows[old], np.arange(1, old.sum() + 1))
    np.testing.assert_array_equal(windows[~old], np.arange(1, (~old).sum() + 1))
    factors = seen.row[steps, 0] / (steps + 1)
    np.testing.assert_allclose(factors, np.where(old, 1.0, 3.0), rtol=1e-6)


def test_a_skipped_step_is_not_measured(runs):
    seen, _ = runs[0]
    assert seen.evaluations[SKIPPED] == seen.evaluations[SKIPPED - 1]
    assert np.isfinite(seen.row).all()


def test_telemetry_keeps_the_last_validation_between_reports(runs):
    _, told = runs[0]
    steps = np.arange(STEPS)
    np.testing.assert_array_equal(told["validation"], steps // 3 * 3)
