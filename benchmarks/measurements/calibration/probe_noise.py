"""When the default probe closes its windows, and how noisy one window is."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from benchmarks.runs.timing import cadence
from fgo_jax.probes import ProbeInputs, gradient_stream

# Eigenvalues of planted gradient covariances and the degrees of freedom of the rows' common
# scale (None: normal rows). Heavy rows are what rare examples make of a gradient.
SPECTRA: dict[str, tuple[np.ndarray, float | None]] = {
    "1/k": (1.0 / np.arange(1, 1001), None), "1/k, heavy rows": (1.0 / np.arange(1, 1001), 4.0),
    "1/sqrt(k)": (np.arange(1, 1001) ** -0.5, None), "0.97^k": (0.97 ** np.arange(300), None),
}  # fmt: skip
REFERENCE = "1/k, heavy rows"  # the noisiest, so the one that the streams are made with
_PROBE = gradient_stream(every=2)  # every step is one of a pair's two, so all of them are due


class Bank(NamedTuple):
    """Many independent windows of the probe on one planted covariance, to draw from."""

    residuals: np.ndarray  # [windows], float64; log of measured over true dimension
    errors: np.ndarray  # [windows], float64; reported standard error over the value
    agreement_residuals: np.ndarray  # [windows], float64
    agreement_errors: np.ndarray  # [windows], float64


@functools.cache
def window_steps(num_steps: int) -> np.ndarray:
    """The steps at which the default probe's estimates change."""
    evaluations = cadence(gradient_stream(), num_steps)[1]
    return np.flatnonzero(np.diff(evaluations, prepend=0))


def bank(name: str, agreement: float, windows: int = 2000) -> Bank:
    """Windows of one of `SPECTRA`; `agreement` is the mean gradient's share of the energy."""
    measured = _windows(name, agreement, windows, is_stream=False)
    (dimension, error), (reading, reading_error) = (
        np.asarray(measured[signal], np.float64) for signal in ("intrinsic_dimension", "agreement")
    )
    eigenvalues, _ = SPECTRA[name]
    truth = np.sum(eigenvalues) ** 2 / np.sum(eigenvalues**2)
    known = np.isfinite(dimension)
    return Bank(
        residuals=np.log(dimension / truth)[known], errors=(error / dimension)[known],
        agreement_residuals=(reading - agreement)[known], agreement_errors=reading_error[known],
    )  # fmt: skip


def summary(bank: Bank, windows: int) -> dict[str, Any]:
    """Figures of a bank; `windows` as asked for, of which some may have said nothing."""
    residuals, errors = bank.residuals, bank.errors
    return {
        "windows": windows, "without_a_value": 1.0 - len(residuals) / windows,
        "bias_of_log": residuals.mean(), "sd_of_log": residuals.std(),
        "quartile_sd_of_log": stats.iqr(residuals) / 1.349,
        "median_reported_error": np.nanmedian(errors), "without_an_error": np.isnan(errors).mean(),
        "agreement_sd": bank.agreement_residuals.std(),
        "agreement_median_reported_error": np.nanmedian(bank.agreement_errors),
    }  # fmt: skip


def autocorrelation(windows: int) -> dict[str, float]:
    """Correlation of the log dimensions of successive windows of one stream, and its error.

    They share no gradient and no sketch; what could join them is the probe's state.
    """
    measured = _windows(REFERENCE, 0.0, windows, is_stream=True)
    logs = np.log(np.asarray(measured["intrinsic_dimension"].value))
    value = float(np.corrcoef(logs[:-1], logs[1:])[0, 1])
    return {"value": value, "error": float((len(logs) - 1) ** -0.5)}


def _windows(name: str, agreement: float, windows: int, is_stream: bool) -> Any:
    """The probe's estimates, [windows] each: of one stream, or each of a probe of its own."""
    eigenvalues, freedom = SPECTRA[name]
    mean = (agreement / (1.0 - agreement) * np.mean(eigenvalues)) ** 0.5
    scale = jnp.asarray(eigenvalues**0.5, jnp.float32)
    start = _PROBE.init(scale)

    def window(state, key):
        def step(state, number):
            own, common, sketch = jax.random.split(jax.random.fold_in(key, number), 3)
            noise = scale * jax.random.normal(own, scale.shape)
            if freedom is not None:
                # Of unit mean square, so that the covariance is the planted one.
                noise *= jnp.sqrt((freedom - 2.0) / jax.random.chisquare(common, freedom))
            grads = {"w": mean + noise}
            inputs = ProbeInputs(grads, grads, None, None, sketch, number)
            return _PROBE.measure(inputs, state), None

        numbers = jnp.arange(2 * start.products.shape[0])
        state, _ = jax.lax.scan(step, state, numbers)
        return state if is_stream else start, _PROBE.read(state)

    scan = jax.jit(lambda keys: jax.lax.scan(window, start, keys)[1])
    return scan(jax.random.split(jax.random.key(0), windows))
