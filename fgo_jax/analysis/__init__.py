"""The curvature of a trained model, measured once and outside the training step."""

from fgo_jax.analysis.density import Density
from fgo_jax.analysis.report import LayerReport, Setup, SpectrumReport
from fgo_jax.analysis.spectra import spectrum

__all__ = ["Density", "LayerReport", "Setup", "SpectrumReport", "spectrum"]
