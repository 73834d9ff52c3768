"""When a phase ends: conditions on named signals, joined with ``&``, ``|`` and ``~``.

A condition has a verdict: 1 (it holds), -1 (it does not hold) or 0 (too little is known).
The phase ends on 1.

| condition | holds when |
|---|---|
| `after(steps)` | the phase has made that many updates before this one |
| `never()` | never: only a deadline or `fgo_jax.force_phase` ends the phase |
| `above(signal, threshold)` | the lower confidence bound of the signal is above the threshold |
| `below(signal, threshold)` | the upper confidence bound of the signal is below the threshold |
| `plateau(signal)` | the signal has set no new minimum in the last 10 measurements |
| `decreasing(signal)` | the slope of the signal over log(step) is below zero |
| `increasing(signal)` | the slope of the signal over log(step) is above zero |
| `stall(signal)` | log(signal) changes slowly with log(step), in both directions |
| `stopped_falling(signal)` | log(signal) falls slowly with log(step), or rises |
| `if_given(trigger, signal, otherwise)` | the trigger, or a fixed verdict without the signal |
| `condition(name, init_memory, judge)` | your own function says so |

A condition on a signal is named after both, such as ``loss_increasing``. Its negation is
``not_loss_increasing``.

``a & b`` has the smaller of the two verdicts, ``a | b`` the larger one and ``~a`` the
negative: ``~a`` holds only if it is known that ``a`` does not. ``decreasing`` and ``increasing``
do not hold whenever the slope is not proven, so their negations hold then.

Conditions use confidence bounds, and most need two measurements in a row. An infinite standard
error makes every condition on its signal unknown until the next measurement.
"""

from fgo_jax.triggers.defaults import defaults
from fgo_jax.triggers.signal import Observation, Signal
from fgo_jax.triggers.thresholds import above, after, below, never, plateau
from fgo_jax.triggers.trends import decreasing, increasing, stall, stopped_falling
from fgo_jax.triggers.trigger import ConditionState, Trigger, condition, if_given

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
    "defaults",
    "if_given",
    "increasing",
    "never",
    "plateau",
    "stall",
    "stopped_falling",
]
