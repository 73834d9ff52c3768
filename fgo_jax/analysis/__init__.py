"""Measures a trained model or a compiled step, outside of training.

A model's curvature (:func:`spectrum`), the symmetries of its loss (:func:`symmetries`), and how far
its representations moved between two states of a run (:func:`representation_drift`). What the
devices of a mesh send to each other in a step (:func:`collectives`).
"""

from fgo_jax.analysis.collectives import Collective, collectives
from fgo_jax.analysis.density import Density
from fgo_jax.analysis.on_the_sphere import symmetry_telemetry
from fgo_jax.analysis.report import LayerReport, Setup, SpectrumReport
from fgo_jax.analysis.representations import feature_split, representation_drift
from fgo_jax.analysis.spectra import spectrum
from fgo_jax.analysis.symmetries import Symmetries, symmetries

__all__ = [
    "Collective",
    "Density",
    "LayerReport",
    "Setup",
    "SpectrumReport",
    "Symmetries",
    "collectives",
    "feature_split",
    "representation_drift",
    "spectrum",
    "symmetries",
    "symmetry_telemetry",
]
