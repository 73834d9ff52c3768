"""Friction-Guided Optimization for optax."""

from fgo_jax import analysis, curvature, linalg, precondition, probes, triggers
from fgo_jax.analysis import SpectrumReport, plotting, spectrum
from fgo_jax.controller.accumulate import accumulate
from fgo_jax.controller.state import FgoState
from fgo_jax.controller.update import phased
from fgo_jax.phases import decays
from fgo_jax.phases.builders import acquisition, execution, reask
from fgo_jax.phases.phase import Phase
from fgo_jax.precondition import (
    clip_by_softmax_radius,
    describe,
    graft,
    orthogonalise,
    scale_by_diagonal_fisher,
    scale_by_fismo,
    scale_by_friction_limit,
    scale_by_kfac,
    scale_by_kronecker_fisher,
    scale_by_layer_noise,
    scale_by_low_rank_fisher,
    scale_by_mousse,
)
from fgo_jax.precondition.aliases import fismo, kfac, kronecker_fisher
from fgo_jax.protocol import STATIC_ARGS, target_acquisition
from fgo_jax.smoothing.average_weights import average_weights
from fgo_jax.smoothing.primal_averaging import scale_by_primal_averaging, triple_momentum
from fgo_jax.smoothing.slow_momentum import slow_momentum
from fgo_jax.steering.averaged import eval_params
from fgo_jax.steering.best import best_params, keep_best
from fgo_jax.steering.by_hand import force_phase, restart, should_stop
from fgo_jax.steering.explain import explain
from fgo_jax.steering.shardings import state_shardings
from fgo_jax.steering.telemetry import telemetry

__version__ = "0.1.0"

__all__ = [
    "STATIC_ARGS",
    "FgoState",
    "Phase",
    "SpectrumReport",
    "accumulate",
    "acquisition",
    "analysis",
    "average_weights",
    "best_params",
    "clip_by_softmax_radius",
    "curvature",
    "decays",
    "describe",
    "eval_params",
    "execution",
    "explain",
    "fismo",
    "force_phase",
    "graft",
    "keep_best",
    "kfac",
    "kronecker_fisher",
    "linalg",
    "orthogonalise",
    "phased",
    "plotting",
    "precondition",
    "probes",
    "reask",
    "restart",
    "scale_by_diagonal_fisher",
    "scale_by_fismo",
    "scale_by_friction_limit",
    "scale_by_kfac",
    "scale_by_kronecker_fisher",
    "scale_by_layer_noise",
    "scale_by_low_rank_fisher",
    "scale_by_mousse",
    "scale_by_primal_averaging",
    "should_stop",
    "slow_momentum",
    "spectrum",
    "state_shardings",
    "target_acquisition",
    "telemetry",
    "triggers",
    "triple_momentum",
]
