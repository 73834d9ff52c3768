"""`axis_name`: what one device sees, all of them act on. Two devices are a mapped axis here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from tests.directions import Doubling

AXIS = "devices"


class Count(NamedTuple):
    evaluations: Any


@pytest.fixture(scope="module")
def run():
    """Updates and telemetry of three steps, [device, step]; one gradient of the second is NaN."""
    axes = []

    def measure(inputs, state):
        axes.append(inputs.axis_name)
        return Count(state.evaluations + 1)

    probe = fgo.probes.Probe(
        signals=("zero",),
        init=lambda params: Count(jnp.zeros([], jnp.int32)),
        due=lambda state, step: step >= 0,
        measure=measure,
        read=lambda state: {"zero": fgo.probes.Estimate(jnp.float32(0), jnp.float32(0))},
    )
    tx = fgo.phased(
        [fgo.acquisition(1e-2, transform=Doubling.made(0.0))], [], probe, axis_name=AXIS
    )

    def step(state, item):
        gradient, value = item
        updates, state = tx.update(
            gradient, state, jnp.ones(2), value=value, validation_value=10 * value
        )
        return state, (updates, fgo.telemetry(state))

    def device(*items):
        return jax.lax.scan(step, tx.init(jnp.ones(2)), items)[1]

    grads = np.ones((2, 3, 2), np.float32)
    grads[1, 1] = np.nan
    values = np.array([[1.0, 1.0, 3.0], [2.0, 2.0, 5.0]], np.float32)
    found = jax.jit(jax.vmap(device, axis_name=AXIS))(grads, values)
    return *jax.device_get(found), axes


def test_a_gradient_that_is_not_finite_on_one_device_is_skipped_on_all(run):
    updates, told, _ = run
    np.testing.assert_array_equal(updates[:, 1], 0.0)
    assert (updates[:, (0, 2)] < 0).all()
    np.testing.assert_array_equal(told["skipped_steps"][:, -1], [1, 1])


def test_losses_and_validations_are_means_over_the_devices(run):
    _, told, _ = run
    for device in (0, 1):
        np.testing.assert_array_equal(told["loss"][device], [1.5, 1.5, 4.0])
        np.testing.assert_array_equal(told["validation"][device], [15.0, 15.0, 40.0])


def test_the_probe_is_told_the_axis(run):
    *_, axes = run
    assert axes
    assert set(axes) == {AXIS}
