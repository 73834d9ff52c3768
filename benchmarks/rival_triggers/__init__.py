"""Rival triggers: the signals by which others decide when to lower the learning rate.

Each file holds one family: a trigger, and a probe that measures what the trigger reads. Phases,
refinement, decay and averaging stay ours, so only *when* phases end differs. A trigger starts
afresh with each phase, so one can end both, as the sources use one for every drop of the rate.
"""

from benchmarks.rival_triggers.angle import angular_velocity, saturated
from benchmarks.rival_triggers.stationarity import norm_drift, stationary
from benchmarks.rival_triggers.weight_norm import bounced, inflected, norms_at_rest, weight_norm
from benchmarks.rival_triggers.without_probe import at_steps, plateau_of_means

__all__ = [
    "angular_velocity", "at_steps", "bounced", "inflected", "norm_drift",
    "norms_at_rest", "plateau_of_means", "saturated", "stationary", "weight_norm",
]  # fmt: skip
