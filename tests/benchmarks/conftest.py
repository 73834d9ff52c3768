"""Fixtures of several tests of the benchmarks."""

import numpy as np
import optax
import pytest

from benchmarks.measurements.calibration import probe_noise
from benchmarks.methods import protocol


@pytest.fixture(scope="module")
def toy_bank():
    """Independent normal noise in place of the probe's own."""
    rng = np.random.default_rng(0)
    return probe_noise.Bank(
        residuals=0.5 * rng.standard_normal(1000),
        errors=np.full(1000, 0.5),
        agreement_residuals=np.zeros(1000),
        agreement_errors=np.full(1000, 0.05),
    )


@pytest.fixture
def cheap_refinement(monkeypatch):
    """Adam in the refinement's place: what is tested with it does not depend on it."""
    monkeypatch.setattr(protocol, "kronecker_fisher", lambda task: optax.scale_by_adam())
    monkeypatch.setattr("benchmarks.runs.training._programs", {})
