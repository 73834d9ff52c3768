"""What the gradient stream reads of gradients in another unit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.probes.probe import ProbeInputs

STEPS, SIZE = 40, 12
PROBE = fgo.probes.gradient_stream(pairs=8, width=16, every=2)


@functools.cache
def program():
    def measure(grads):
        def step(state, now):
            number, g = now
            inputs = ProbeInputs(g, g, None, None, jax.random.key(0), number)
            return PROBE.measure(inputs, state), None

        state, _ = jax.lax.scan(step, PROBE.init(grads[0]), (jnp.arange(STEPS), grads))
        return state.evaluations, PROBE.read(state)

    return jax.jit(measure)


@pytest.mark.parametrize("exponent", [-45, -30, 30, 58])
def test_numbers_without_a_unit_are_those_of_any_unit(exponent):
    grads = np.random.default_rng(0).normal(size=(STEPS, SIZE)).astype(np.float32)
    windows, expected = jax.device_get(program()(grads))
    _, got = jax.device_get(program()(np.ldexp(grads, exponent)))
    assert windows == 2
    for name, estimate in expected.items():
        power = 2 * exponent if name in ("trace", "top_eigenvalue") else 0
        # A power of two changes no digit, but float32 products may flush a last one to zero.
        for now, before in zip(got[name], estimate, strict=True):
            np.testing.assert_allclose(now, np.ldexp(before, power), rtol=1e-5, err_msg=name)
