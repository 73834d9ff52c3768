"""A trained model, measured once and outside the training step: curvature and symmetries."""

from fgo_jax.analysis.density import Density
from fgo_jax.analysis.on_the_sphere import symmetry_telemetry
from fgo_jax.analysis.report import LayerReport, Setup, SpectrumReport
from fgo_jax.analysis.spectra import spectrum
from fgo_jax.analysis.symmetries import Symmetries, symmetries

__all__ = [
    "Density",
    "LayerReport",
    "Setup",
    "SpectrumReport",
    "Symmetries",
    "spectrum",
    "symmetries",
    "symmetry_telemetry",
]
