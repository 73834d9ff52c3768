"""Operators that draw: a fresh key for every measurement, and none for those that do not ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fgo_jax as fgo
from fgo_jax.linalg.operator import bind
from fgo_jax.probes import ProbeInputs, gram, hutchinson, lanczos

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(4)}
BATCH = jnp.asarray(RNG.normal(size=(16, 3)), jnp.float32)


def predict(params, batch):
    return jnp.tanh(batch @ params["w"]) * params["b"]


SAMPLED = fgo.curvature.sampled_fisher(predict)
GGN = fgo.curvature.ggn(predict)


def inputs(key):
    return ProbeInputs(None, None, PARAMS, BATCH, key, jnp.int32(200))


def sampled_rows(params, batch, *, key):
    return jax.tree.map(lambda p: jax.random.normal(key, (batch.shape[0], *p.shape)), params)


PROBES = {
    "hutchinson": lambda operator: hutchinson(operator, examples=16, smoothing=0.0),
    "lanczos": lambda operator: lanczos(operator, num_steps=12, examples=16),
}


def ignoring(operator):
    """The same operator, but it insists on a key."""
    return lambda params, batch, *, key: operator(params, batch)


@pytest.mark.parametrize("name", PROBES)
def test_the_trace_is_that_of_the_ggn_on_average(name):
    probe = PROBES[name](SAMPLED)

    @jax.jit
    def traces(keys):
        start = probe.init(PARAMS)
        return jax.lax.map(lambda k: probe.read(probe.measure(inputs(k), start))["trace"][0], keys)

    draws = np.asarray(traces(jax.random.split(jax.random.key(1), 400)), np.float64)
    vector, unravel = ravel_pytree(PARAMS)
    matvec = GGN(PARAMS, BATCH)
    columns = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(vector.size))
    error = draws.std(ddof=1) / draws.size**0.5
    truth = float(jnp.trace(columns))
    assert abs(draws.mean() - truth) < 3 * error
    assert 3 * error < 0.1 * truth


def test_two_measurements_and_two_halves_have_different_samples():
    @functools.partial(jax.jit, static_argnums=0)
    def keys(name, key):
        seen = []

        def operator(params, batch, *, key):
            seen.append(jax.random.key_data(key))
            return GGN(params, batch)

        probe = PROBES[name](operator)
        probe.measure(inputs(key), probe.init(PARAMS))
        # And what a probe itself makes of its key.
        return jnp.concatenate([jnp.stack(seen), jax.random.key_data(jax.random.split(key, 16))])

    for name, halves in (("hutchinson", 2), ("lanczos", 1)):
        found = np.concatenate([keys(name, jax.random.key(seed)) for seed in (0, 1)])
        assert len(found) == len(np.unique(found, axis=0)) == 2 * (16 + halves)


def test_rows_are_drawn_anew():
    probe = gram(sampled_rows, examples=16)
    measure = jax.jit(probe.measure)
    first, second = (measure(inputs(jax.random.key(s)), probe.init(PARAMS)) for s in (0, 1))
    assert probe.read(first)["trace"].value != probe.read(second)["trace"].value


@pytest.mark.parametrize("name", PROBES)
def test_an_operator_without_a_key_reads_what_it_read(name):
    """The draws' key comes out of none of the other keys."""
    read = []
    for operator in (GGN, ignoring(GGN)):
        probe = PROBES[name](operator)
        state = jax.jit(probe.measure)(inputs(jax.random.key(0)), probe.init(PARAMS))
        read.append(state)
    jax.tree.map(np.testing.assert_array_equal, *read)


def test_a_spectrum_is_of_one_draw_per_batch():
    data = [BATCH + 0.1 * i for i in range(2)]
    report = fgo.spectrum(SAMPLED, PARAMS, batches=data, num_steps=16, top=3, key=jax.random.key(2))
    # Were the draws not the same in every product, no residual could be small.
    assert np.all(report.residuals < 1e-3 * report.eigenvalues[0])
    again = fgo.spectrum(SAMPLED, PARAMS, batches=data, num_steps=16, top=3, key=jax.random.key(3))
    assert abs(again.eigenvalues[0] - report.eigenvalues[0]) > 1e-2 * report.eigenvalues[0]
    equal = [
        fgo.spectrum(operator, PARAMS, batches=data, num_steps=16, top=3).eigenvalues
        for operator in (GGN, ignoring(GGN))
    ]
    np.testing.assert_array_equal(*equal)


def test_which_operators_get_a_key():
    got = []

    def operator(params, batch, *, key):
        got.append(key)

    def optional(params, batch, key=None):
        got.append(key)

    def positional(params, batch, key):
        got.append(key)

    for one, asks in (
        (operator, True),
        (positional, True),
        (jax.jit(operator), True),
        (optional, False),
        (functools.partial(operator, key=None), False),
        (lambda params, key: got.append(None), False),
        (lambda *args, **kwargs: got.append(kwargs.get("key")), False),
    ):
        bind(one, PARAMS, BATCH, jax.random.key(0))
        assert (got.pop() is not None) == asks
