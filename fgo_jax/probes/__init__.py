"""Measurements of the friction field inside the compiled step."""

from fgo_jax.probes.example_rows import example_gradients
from fgo_jax.probes.gradient_stream import gradient_stream
from fgo_jax.probes.gram import gram
from fgo_jax.probes.groups import layer_groups
from fgo_jax.probes.hutchinson import hutchinson
from fgo_jax.probes.lanczos import lanczos
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

__all__ = [
    "Estimate",
    "Probe",
    "ProbeInputs",
    "example_gradients",
    "gradient_stream",
    "gram",
    "hutchinson",
    "lanczos",
    "layer_groups",
]
