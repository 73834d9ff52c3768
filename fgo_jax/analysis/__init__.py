"""What a trained model's curvature looks like, measured once and outside the step."""

from fgo_jax.analysis.measure import spectrum
from fgo_jax.analysis.report import Density, LayerReport, SpectrumReport

__all__ = ["Density", "LayerReport", "SpectrumReport", "spectrum"]
