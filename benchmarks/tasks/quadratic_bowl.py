"""The noisy quadratic: linear regression on fresh mini-batches of a rotated, ill-conditioned input.

Inputs x ~ N(0, H), H = U diag(lambda) U^T with 20 log-spaced eigenvalues from 1 to 1e-3 in a
random 20-dimensional subspace of R^100; y = x^T theta* + sigma eps. Every gradient is noisy,
first because of the sampled inputs and, near the optimum, because of sigma: without that
second part one natural-gradient step would end the race.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.task import Task

DIMENSION, SIGNAL = 100, 20
CONDITION, BATCH_SIZE = 1e3, 32

# The metric spans six decades: an accelerator's default of 19-bit products would show in it.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _data(seed: int, sigma: float):
    rng = np.random.default_rng([seed, 0xB0])
    basis = np.linalg.qr(rng.standard_normal((DIMENSION, SIGNAL)))[0]
    scales = np.logspace(0, -0.5 * np.log10(CONDITION), SIGNAL)  # square roots of lambda
    return {
        "root": jnp.asarray(basis * scales, jnp.float32),  # R with R R^T = H
        "optimum": jnp.asarray(basis @ rng.standard_normal(SIGNAL), jnp.float32),
        "sigma": jnp.asarray(sigma, jnp.float32),
    }


def _init(key):
    del key
    return {"theta": jnp.zeros(DIMENSION, jnp.float32)}


def _draw(data, key, size):
    input_key, noise_key = jax.random.split(key)
    inputs = _matmul(jax.random.normal(input_key, (size, SIGNAL)), data["root"].T)
    noise = data["sigma"] * jax.random.normal(noise_key, (size,))
    return {"x": inputs, "y": _matmul(inputs, data["optimum"]) + noise}


def _batch(data, key, step):
    return _draw(data, jax.random.fold_in(key, step), BATCH_SIZE)


def _predict(params, batch):
    return _matmul(batch["x"], params["theta"])


def _loss(params, batch):
    return 0.5 * jnp.mean(jnp.square(_predict(params, batch) - batch["y"]))


def excess_loss(data, params):
    """1/2 (theta - theta*)^T H (theta - theta*), the population loss above its minimum."""
    offset = params["theta"] - data["optimum"]
    return 0.5 * jnp.sum(jnp.square(_matmul(offset, data["root"])))


def _test(data, params):
    fresh = _draw(data, jax.random.key(0x7E57), 4096)
    offset = params["theta"] - data["optimum"]
    return {
        "excess_loss": excess_loss(data, params),
        "sample_excess_loss": 0.5 * jnp.mean(jnp.square(_matmul(fresh["x"], offset))),
    }


def quadratic_bowl(name: str = "quadratic_bowl", sigma: float = 0.02) -> Task:
    return Task(
        name=name, num_steps=2000, eval_every=2, warmup_steps=20, batch_size=BATCH_SIZE,
        data=functools.partial(_data, sigma=sigma), init=_init, batch=_batch, loss=_loss,
        predict=_predict, loss_name="squared_error", evaluate=excess_loss, test=_test,
        metric="excess population loss", target=1e-6, smoothing=1, hold=None,
    )  # fmt: skip
