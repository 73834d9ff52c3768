"""The curvature of a trained model, measured once and outside the training step."""

from fgo_jax.analysis.measure import spectrum
from fgo_jax.analysis.report import Density, LayerReport, SpectrumReport

__all__ = ["Density", "LayerReport", "SpectrumReport", "spectrum"]
