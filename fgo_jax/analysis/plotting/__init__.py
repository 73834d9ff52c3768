"""Pictures of runs and of spectra. They need matplotlib: `pip install fgo_jax[plot]`.

| picture | of |
|---|---|
| `run` | a training run: loss, rate, what was measured, and what ended each phase |
| `spectral_density` | a spectrum: its bulk, and its outliers one by one |
| `layers` | the curvature of each group of parameters |
"""

from fgo_jax.analysis.plotting.of_runs import run
from fgo_jax.analysis.plotting.of_spectra import layers, spectral_density

__all__ = ["layers", "run", "spectral_density"]
