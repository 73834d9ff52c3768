"""A trained model, measured once and outside the training step.

Its curvature (:func:`spectrum`), the symmetries of its loss (:func:`symmetries`), and how far its
representations moved between two states of a run (:func:`representation_drift`).
"""

from fgo_jax.analysis.density import Density
from fgo_jax.analysis.on_the_sphere import symmetry_telemetry
from fgo_jax.analysis.report import LayerReport, Setup, SpectrumReport
from fgo_jax.analysis.representations import feature_split, representation_drift
from fgo_jax.analysis.spectra import spectrum
from fgo_jax.analysis.symmetries import Symmetries, symmetries

__all__ = [
    "Density",
    "LayerReport",
    "Setup",
    "SpectrumReport",
    "Symmetries",
    "feature_split",
    "representation_drift",
    "spectrum",
    "symmetries",
    "symmetry_telemetry",
]
