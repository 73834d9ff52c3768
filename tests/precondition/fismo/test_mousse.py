"""scale_by_mousse against its equations in float64, and Muon where nothing is whitened."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.precondition.fismo.test_fismo import of_trace, polar
from tests.precondition.sequences import gradients, run

BETA, DECAY, DAMPING, EVERY, POWER = 0.9, 0.8, 0.05, 3, 0.125
SHAPES = {"wide": (3, 6), "tall": (6, 4), "square": (5, 5)}
STEPS = 2 * EVERY + 2


@pytest.fixture(scope="module")
def sequences():
    return {k: list(gradients(shape, STEPS, seed=5)) for k, shape in SHAPES.items()}


def trees(sequences):
    return [{k: jnp.asarray(g[t], jnp.float32) for k, g in sequences.items()} for t in range(STEPS)]


def inverse_power(p):
    values, vectors = np.linalg.eigh(p)
    return vectors * values**-POWER @ vectors.T


def reference(grads):
    """(update, half of the linear map) at every step; inverses are those of the last refresh."""
    m, n = grads[0].shape
    p, q, moment, out = np.eye(m), np.eye(n), np.zeros((m, n)), []
    for t, g in enumerate(grads):
        h = g / np.sqrt(np.mean(g**2))
        p = of_trace(DECAY * p + (1 - DECAY) * (h @ h.T / n + DAMPING * np.eye(m)))
        q = of_trace(DECAY * q + (1 - DECAY) * (h.T @ h / m + DAMPING * np.eye(n)))
        if t % EVERY == 0:
            left, right = inverse_power(p), inverse_power(q)
        moment = BETA * moment + (1 - BETA) * g
        whitened = left @ moment @ right / (1 - BETA ** (t + 1))
        flat = polar(whitened)
        u = left @ flat @ right
        size = np.linalg.norm(whitened) / np.sqrt(min(m, n))
        half = left @ grads[0] @ right / np.sqrt(size)
        out.append((u * np.linalg.norm(flat) / np.linalg.norm(u), half))
    return out


def test_updates_and_metric_are_those_of_the_equations(sequences):
    tx = fgo.scale_by_mousse(BETA, DECAY, DAMPING, refresh_every=EVERY)
    grads = trees(sequences)
    updates, state = run(tx, grads)
    metric = tx.metric(grads[0], state)
    for key, sequence in sequences.items():
        expected = reference(sequence)
        for t, (update, _) in enumerate(expected):
            # float32, through an iteration that multiplies small singular values by up to 3.4^5.
            np.testing.assert_allclose(
                updates[t][key], update, atol=2e-3 * np.abs(update).max(), err_msg=f"{key} {t}"
            )
        np.testing.assert_allclose(metric[key], expected[-1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("identity", [{"factor_decay": 1.0}, {"power": 0.0}])
def test_without_whitening_it_is_muon(sequences, identity):
    grads = trees(sequences)
    numbers = {k: optax.contrib.MuonDimensionNumbers() for k in SHAPES}
    muon = optax.contrib.scale_by_muon(nesterov=False, weight_dimension_numbers=numbers)
    ours, _ = run(fgo.scale_by_mousse(**identity), grads)
    for a, b in zip(ours, run(muon, grads)[0], strict=True):
        for key in SHAPES:
            # The same sums in another order, multiplied by up to 3.4^5.
            np.testing.assert_allclose(a[key], b[key], atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"beta": 1.0}, r"beta must lie in \[0, 1\)"),
        ({"factor_decay": 1.1}, r"factor_decay must lie in \[0, 1\]"),
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
        ({"power": 1.5}, r"power must lie in \[0, 1\]"),
        ({"refresh_every": 0}, "refresh_every must be an integer >= 1"),
        ({"block_size": 0}, "block_size must be an integer >= 1"),
        ({"consistent_rms": 0.0}, "consistent_rms must be a finite number > 0"),
    ],
)
def test_wrong_numbers_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        fgo.scale_by_mousse(**arguments)
