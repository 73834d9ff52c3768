"""Friction-Guided Optimization for optax."""

from fgo_jax import curvature, precondition, probes, triggers
from fgo_jax.averaging import average_weights, eval_params
from fgo_jax.machine import phased
from fgo_jax.phases import Phase, acquisition, execution, reask
from fgo_jax.precondition import scale_by_kronecker_fisher
from fgo_jax.protocol import STATIC_ARGS, target_acquisition
from fgo_jax.state import FgoState
from fgo_jax.telemetry import force_phase, restart, should_stop, telemetry

__all__ = [
    "STATIC_ARGS",
    "FgoState",
    "Phase",
    "acquisition",
    "average_weights",
    "curvature",
    "eval_params",
    "execution",
    "force_phase",
    "phased",
    "precondition",
    "probes",
    "reask",
    "restart",
    "scale_by_kronecker_fisher",
    "should_stop",
    "target_acquisition",
    "telemetry",
    "triggers",
]
