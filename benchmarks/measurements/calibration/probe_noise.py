"""When the default probe closes its windows, and how noisy one window is."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.probes import gradient_stream
from fgo_jax.probes.probe import ProbeInputs

# Eigenvalues of planted gradient covariances and the degrees of freedom of the rows' common
# scale (None: normal rows). Heavy rows are what rare examples make of a gradient.
SPECTRA: dict[str, tuple[np.ndarray, float | None]] = {
    "1/k": (1.0 / np.arange(1, 1001), None),
    "1/k, heavy rows": (1.0 / np.arange(1, 1001), 4.0),
    "1/sqrt(k)": (np.arange(1, 1001) ** -0.5, None),
    "0.97^k": (0.97 ** np.arange(300), None),
}
REFERENCE = "1/k, heavy rows"  # the noisiest, so the one that the streams are made with


class Bank(NamedTuple):
    """Many independent windows of the probe on one planted covariance, to draw from."""

    residuals: np.ndarray  # [windows], float64; log of measured over true dimension
    errors: np.ndarray  # [windows], float64; reported standard error over the value
    agreement_residuals: np.ndarray  # [windows], float64
    agreement_errors: np.ndarray  # [windows], float64


@functools.cache
def window_steps(num_steps: int) -> np.ndarray:
    """The steps at which the default probe's estimates change, from the probe's own machine."""
    # The cadence does not depend on the gradients; with one entry it costs nothing.
    probe = gradient_stream(width=1)
    grads = {"w": jnp.ones([1], jnp.float32)}

    def step(state, number):
        inputs = ProbeInputs(grads, grads, None, None, jax.random.key(0), number)
        new = jax.lax.cond(
            probe.due(state, number), probe.measure, lambda _, old: old, inputs, state
        )
        return new, new.evaluations != state.evaluations

    scan = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(num_steps)))
    return np.flatnonzero(np.asarray(scan(probe.init(grads))[1]))


def bank(name: str, agreement: float, windows: int = 2000, seed: int = 0) -> Bank:
    """Measures a planted covariance `windows` times.

    Args:
      name: of one of `SPECTRA`.
      agreement: the share of the mean gradient in a gradient's energy.
      windows: to measure.
      seed: of the gradients and sketches.
    """
    eigenvalues, freedom = SPECTRA[name]
    mean = (agreement / (1.0 - agreement) * np.mean(eigenvalues)) ** 0.5
    keys = jax.random.split(jax.random.key(seed), windows)
    scale = jnp.asarray(eigenvalues**0.5, jnp.float32)
    measured = _windows(scale, jnp.float32(mean), freedom, keys)
    (dimension, error), (reading, reading_error) = (
        np.asarray(measured[name], np.float64) for name in ("intrinsic_dimension", "agreement")
    )
    truth = np.sum(eigenvalues) ** 2 / np.sum(eigenvalues**2)
    known = np.isfinite(dimension)
    return Bank(
        residuals=np.log(dimension / truth)[known],
        errors=(error / dimension)[known],
        agreement_residuals=(reading - agreement)[known],
        agreement_errors=reading_error[known],
    )


@functools.partial(jax.jit, static_argnames="freedom")
def _windows(scale: jax.Array, mean: jax.Array, freedom: float | None, keys: jax.Array) -> Any:
    def window(key):
        state, read = _next_window(_PROBE.init(scale), key, scale, mean, freedom)
        del state
        return read

    return jax.lax.map(window, keys)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _stream(scale: jax.Array, freedom: float | None, windows: int, key: jax.Array) -> jax.Array:
    def window(state, key):
        state, read = _next_window(state, key, scale, jnp.float32(0.0), freedom)
        return state, read["intrinsic_dimension"].value

    keys = jax.random.split(key, windows)
    return jax.lax.scan(window, _PROBE.init(scale), keys)[1]


_PROBE = gradient_stream(every=2)


def _next_window(state: Any, key: jax.Array, scale: jax.Array, mean: jax.Array, freedom: Any):
    """Every step is one of a pair's two at this cadence, so all of them are due."""

    def step(state, number):
        own, common, sketch = jax.random.split(jax.random.fold_in(key, number), 3)
        noise = scale * jax.random.normal(own, scale.shape)
        if freedom is not None:
            # Of unit mean square, so that the covariance is the planted one.
            noise *= jnp.sqrt((freedom - 2.0) / jax.random.chisquare(common, freedom))
        grads = {"w": mean + noise}
        return _PROBE.measure(ProbeInputs(grads, grads, None, None, sketch, number), state), None

    state, _ = jax.lax.scan(step, state, jnp.arange(2 * state.products.shape[0]))
    return state, _PROBE.read(state)


def summary(bank: Bank, windows: int) -> dict[str, Any]:
    """Figures of a bank; `windows` as asked for, of which some may have said nothing."""
    residuals, errors = bank.residuals, bank.errors
    low, high = np.quantile(residuals, [0.25, 0.75])
    return {
        "windows": windows,
        "without_a_value": 1.0 - len(residuals) / windows,
        "bias_of_log": residuals.mean(),
        "sd_of_log": residuals.std(),
        "quartile_sd_of_log": (high - low) / 1.349,
        "median_reported_error": np.nanmedian(errors),
        "without_an_error": np.isnan(errors).mean(),
        "agreement_sd": bank.agreement_residuals.std(),
        "agreement_median_reported_error": np.nanmedian(bank.agreement_errors),
    }


def autocorrelation(windows: int, seed: int = 0) -> dict[str, float]:
    """Correlation of the log dimensions of successive windows of one stream, and its error.

    They share no gradient and no sketch; what could join them is the probe's state.
    """
    eigenvalues, freedom = SPECTRA[REFERENCE]
    scale = jnp.asarray(eigenvalues**0.5, jnp.float32)
    logs = np.log(np.asarray(_stream(scale, freedom, windows, jax.random.key(seed))))
    return {
        "value": float(np.corrcoef(logs[:-1], logs[1:])[0, 1]),
        "error": float((len(logs) - 1) ** -0.5),
    }
