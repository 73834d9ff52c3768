"""Friction-Guided Optimization for optax."""

from fgo_jax import analysis, curvature, plotting, precondition, probes, triggers
from fgo_jax.analysis import SpectrumReport, spectrum
from fgo_jax.averaging import average_weights, eval_params
from fgo_jax.machine import phased
from fgo_jax.phases import Phase, acquisition, execution, reask
from fgo_jax.precondition import scale_by_kfac, scale_by_kronecker_fisher
from fgo_jax.protocol import STATIC_ARGS, target_acquisition
from fgo_jax.state import FgoState
from fgo_jax.telemetry import force_phase, restart, should_stop, telemetry

__all__ = [
    "STATIC_ARGS",
    "FgoState",
    "Phase",
    "SpectrumReport",
    "acquisition",
    "analysis",
    "average_weights",
    "curvature",
    "eval_params",
    "execution",
    "force_phase",
    "phased",
    "plotting",
    "precondition",
    "probes",
    "reask",
    "restart",
    "scale_by_kfac",
    "scale_by_kronecker_fisher",
    "should_stop",
    "spectrum",
    "target_acquisition",
    "telemetry",
    "triggers",
]
