"""Fixtures of several tests of the benchmarks."""

import numpy as np
import pytest

from benchmarks.measurements.calibration import probe_noise


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
