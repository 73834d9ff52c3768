"""Rival triggers: what others watch to decide that a learning rate should fall.

Each signal family is a file: the trigger, and the probe that measures what it reads, for
`fgo_jax.phased`. Phases, refinement, decay and averaging stay ours, so that only *when*
phases end differs. A trigger's state starts afresh with its phase, hence the same trigger
can end both phases, as the sources use one for every drop of the rate.
"""

from benchmarks.rival_triggers.angle import angular_velocity, saturated
from benchmarks.rival_triggers.fixed import at_shares, at_steps
from benchmarks.rival_triggers.mean_plateau import plateau_of_means
from benchmarks.rival_triggers.stationarity import norm_drift, stationary
from benchmarks.rival_triggers.weight_norm import bounced, inflected, weight_norm

__all__ = [
    "angular_velocity",
    "at_shares",
    "at_steps",
    "bounced",
    "inflected",
    "norm_drift",
    "plateau_of_means",
    "saturated",
    "stationary",
    "weight_norm",
]
