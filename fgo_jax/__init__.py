"""Friction-Guided Optimization for optax.

`target_acquisition` is the optimizer. `explain` and `telemetry` say what a run does, in words and
in numbers. `python -m fgo_jax` lists all names. Eight terms that they use:

- **Intrinsic dimension**, or dimension of the gradient noise: over how many directions the noise
  spreads, (tr C)^2 / tr C^2 with its covariance C. Acquisition ends when it falls more slowly than
  1/step.
- **Base**: FGO's preconditioner, `kronecker_fisher`, alone at a constant learning rate. It is much
  like SOAP. Benchmarks compare FGO with it: the difference is what the phases add.
- **Agreement**: the inner product of two successive gradients over their mean squared norm: 1
  without noise, 0 for noise alone. Both transitions need it below 0.75 with 95 % confidence.
- **Energy rank**: how many of the eight eigenvalues of a measurement hold 90 % of their sum.
- **Energy exponent**: q, where the squared length of the slow momentum falls as 1/t^q. q = 0: past
  directions agree. q = 1: they are independent noise. q = 2: the weights fluctuate around
  a stationary point.
- **Slow momentum**: a mean of the update directions of about the last quarter of the steps since
  re-ask (`reask`) began. Its share in updates rises from 0 to 1/2.
- **Hand-over**: 40 steps in which the old phase's transform still makes the updates. None by
  default: all phases share one transform.
- **Metric**: if the optimizer multiplies a gradient by a matrix P^-1, the probe measures the
  gradient times P^(-1/2). For a plain optax transform it measures the raw gradient.
"""

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
