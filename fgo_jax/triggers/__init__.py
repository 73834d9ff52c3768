"""When a phase ends: conditions on named signals, composed with & | ~."""

from fgo_jax.triggers.thresholds import above, after, below, never, plateau
from fgo_jax.triggers.trends import decreasing, increasing, stall, stopped_falling
from fgo_jax.triggers.trigger import (
    ConditionState,
    Observation,
    Signal,
    Trigger,
    condition,
    if_given,
)

__all__ = [
    "ConditionState",
    "Observation",
    "Signal",
    "Trigger",
    "above",
    "after",
    "below",
    "condition",
    "decreasing",
    "if_given",
    "increasing",
    "never",
    "plateau",
    "stall",
    "stopped_falling",
]
