"""Probes measure on when all gradients grow or fall by far, and parts of any size beside others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.probes.probe import ProbeInputs

DIM = 10
ROWS = fgo.probes.example_gradients(jnp.vdot)  # the gradient of an example is the example
ROTATION = jnp.linalg.qr(jax.random.normal(jax.random.key(7), (DIM, DIM)))[0]
MATRIX = ROTATION * jnp.arange(1.0, DIM + 1) @ ROTATION.T


def gram(groups=None):
    return fgo.probes.gram(ROWS, examples=32, groups=groups)


def hutchinson(groups=None):
    """Of an operator that grows with the square of its batch, as the mean square of gradients."""

    def operator(params, batch):
        return lambda v: jnp.mean(jnp.square(batch)) * (MATRIX @ v)

    return fgo.probes.hutchinson(operator, num_samples=4, examples=32, groups=groups)


def measured(probe, scales):
    """What is read after one measurement at each scale of the gradients, and the state."""

    def one(state, numbered):
        number, scale = numbered
        key = jax.random.key(number)
        batch = scale * jax.random.normal(key, (32, DIM))
        inputs = ProbeInputs(None, None, jnp.zeros(DIM), batch, key, jnp.int32(200))
        return probe.measure(inputs, state), None

    scales = jnp.asarray(scales, jnp.float32)
    start = probe.init(jnp.zeros(DIM))
    numbered = jnp.arange(scales.size), scales
    state, _ = jax.jit(lambda s: jax.lax.scan(one, s, numbered))(start)
    return probe.read(state), state


@pytest.mark.parametrize("make", [gram, hutchinson])
@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1e5, 1e8])
def test_another_size_of_the_gradients_is_measured(make, scale):
    # So many measurements that nothing is left of the first one.
    count = 30 if scale > 1 else 600
    changed, state = measured(make(), [1.0, *[scale] * count])
    usual, _ = measured(make(), [1.0] * (count + 1))
    assert int(state.evaluations) == count + 1
    assert int(state.held) == 0
    for name, unit in (("trace", scale**2), ("intrinsic_dimension", 1.0)):
        for found, wanted in zip(changed[name], usual[name], strict=True):
            np.testing.assert_allclose(found / unit, wanted, rtol=0.25, err_msg=name)


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-8])
def test_a_small_group_has_the_errors_of_a_large_one(scale):
    params = {"large": jnp.zeros(DIM), "small": jnp.zeros(DIM)}
    groups = fgo.probes.layer_groups(params)
    sizes = {"large": 1.0, "small": scale}

    def operator(params, batch):
        return lambda v: {name: sizes[name] ** 2 * (MATRIX @ v[name]) for name in v}

    def loss(params, example):
        return sum(sizes[name] * jnp.vdot(params[name], example[name]) for name in params)

    key = jax.random.key(0)
    batch = dict.fromkeys(params, jax.random.normal(key, (32, DIM)))
    inputs = ProbeInputs(None, None, params, batch, key, jnp.int32(200))
    rows = fgo.probes.example_gradients(loss)
    for probe in (
        fgo.probes.gram(rows, examples=32, groups=groups),
        fgo.probes.hutchinson(operator, num_samples=8, examples=32, groups=groups),
    ):
        read = probe.read(jax.jit(probe.measure)(inputs, probe.init(params)))
        dimension, trace = read["intrinsic_dimension/small"], read["trace/small"]
        assert 2 < dimension.value < 2 * DIM
        assert 0.02 < dimension.error / dimension.value < 1
        assert 0.005 < trace.error / trace.value < 1


def test_the_stream_knows_the_error_of_a_small_group():
    params = {"large": jnp.zeros(DIM), "small": jnp.zeros(DIM)}
    probe = fgo.probes.gradient_stream(pairs=8, groups=fgo.probes.layer_groups(params))

    def one(state, number):
        key = jax.random.key(number)
        noise = jax.random.normal(key, (DIM,))
        grads = {"large": noise, "small": 1e-9 * noise}
        inputs = ProbeInputs(grads, grads, params, None, key, number)
        return probe.measure(inputs, state), None

    state, _ = jax.lax.scan(one, probe.init(params), jnp.arange(64))
    read = probe.read(state)
    large, small = (read[f"intrinsic_dimension/{name}"] for name in params)
    np.testing.assert_allclose(large.value, small.value, rtol=0.5)
    np.testing.assert_allclose(large.error, small.error, rtol=0.9)
    assert small.error > 0.1
