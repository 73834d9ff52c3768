"""The curvature of a trained model, measured once and outside the training step."""

from fgo_jax.analysis.report import Density, LayerReport, SpectrumReport
from fgo_jax.analysis.spectra import spectrum

__all__ = ["Density", "LayerReport", "SpectrumReport", "spectrum"]
