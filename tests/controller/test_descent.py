"""A direction that goes up the gradient raises a flag; noise and momentum alone never do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.descent import GROWTH, SOONEST

SCALES = jnp.logspace(-2, 0, 20)  # curvatures


def turning(transform, at):
    """A transform that goes uphill from a step on: no trial of a few steps can tell."""

    def update(updates, state, params=None):
        count, inner = state
        updates, inner = transform.update(updates, inner, params)
        sign = jnp.where(count < at, 1.0, -1.0)
        return jax.tree.map(lambda u: sign * u, updates), (count + 1, inner)

    return optax.GradientTransformation(lambda p: (jnp.int32(0), transform.init(p)), update)


def alone(transform, rate):
    phase = fgo.Phase("constant", lambda _: jnp.float32(rate), transform)
    return fgo.phased([phase], [])


def record(tx, steps, seed=0, noise=1.0):
    """Telemetry of every step of a descent on a noisy quadratic bowl."""

    def step(carry, number):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(seed), number)
        grads = SCALES * params + noise * jax.random.normal(key, params.shape)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), fgo.telemetry(state)

    start = jnp.ones(20)
    return jax.lax.scan(step, (start, tx.init(start)), jnp.arange(steps))


# At these rates each is at rest after a while: its directions swing to and fro.
DOWN = {
    "sgd": (optax.identity, 0.5),
    "long momentum": (lambda: optax.trace(0.99), 0.01),
    "adam": (optax.scale_by_adam, 0.1),
    "adam with a long memory": (lambda: optax.scale_by_adam(b1=0.99), 0.03),
    "lion": (optax.scale_by_lion, 0.03),
}


@pytest.mark.parametrize("name", DOWN)
def test_noise_and_momentum_never_raise_the_flag(name):
    make, rate = DOWN[name]
    run = jax.jit(jax.vmap(lambda seed: record(alone(make(), rate), 2000, seed)[1]))
    seen = run(jnp.arange(16))
    assert not np.asarray(seen["uphill"]).any()
    assert np.asarray(seen["cosine"])[:, 1:].min() > -0.9
    assert (np.asarray(seen["cosine"]).mean(axis=1) > 0).all()


@pytest.mark.parametrize("at", [10, 300])
def test_a_transform_that_turns_uphill_is_flagged(at):
    tx = alone(turning(optax.trace(0.5), at), 1e-3)
    run = jax.jit(lambda noise: record(tx, 2 * at + 160, noise=noise))
    # Thirty measurements, until the good ones are forgotten.
    within = at + 30 * max(SOONEST, int(1.5 * GROWTH * at))
    for noise in (0.0, 1.0):
        (_, state), seen = run(noise)
        uphill = np.asarray(seen["uphill"])
        assert not uphill[:at].any()
        assert uphill[within:].all()
        assert float(seen["cosine"][-1]) < -0.6
        assert "The directions point uphill (cosine -" in fgo.explain(state)


def test_the_next_transform_has_a_record_of_its_own():
    phases = [
        fgo.Phase("up", lambda _: jnp.float32(1e-3), turning(optax.identity(), 10)),
        fgo.Phase("down", lambda _: jnp.float32(1e-3), optax.scale_by_adam()),
    ]
    tx = fgo.phased(phases, [fgo.triggers.after(99)], handover_steps=20)
    (_, state), seen = jax.jit(lambda: record(tx, 160))()
    uphill = np.asarray(seen["uphill"])
    assert uphill[80:120].all()
    assert not uphill[125:].any()
    assert "uphill" not in fgo.explain(state)


def test_without_a_gradient_nothing_is_measured_and_nothing_flagged():
    tx, zeros = alone(optax.identity(), 0.1), jnp.zeros(3)
    update, state = jax.jit(tx.update), tx.init(zeros)
    for _ in range(3):
        _, state = update(zeros, state, zeros)
    assert int(state.descent.counts[0]) == 0
    assert np.isnan(fgo.telemetry(state)["cosine"])
    assert not bool(fgo.telemetry(state)["uphill"])
    _, state = update(zeros + 1, fgo.restart(state), zeros)
    np.testing.assert_allclose(fgo.telemetry(state)["cosine"], 1.0, rtol=1e-6)


def test_it_is_measured_more_and_more_rarely():
    tx = alone(optax.identity(), 1e-3)
    due = np.asarray(jax.jit(lambda: record_due(tx, 3000))())
    times = np.flatnonzero(np.diff(due))
    assert len(times) < 400
    gaps = np.diff(times)
    assert gaps[0] == SOONEST
    np.testing.assert_allclose(gaps[-10:] / times[-11:-1], GROWTH, rtol=0.05)


def record_due(tx, steps):
    def step(state, _):
        state = tx.update(jnp.ones(3), state, jnp.ones(3))[1]
        return state, state.descent.counts[2]

    return jax.lax.scan(step, tx.init(jnp.ones(3)), length=steps)[1]
