"""What every probe is: a measurement of the friction field with a cadence of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Estimate(NamedTuple):
    """A measured number and how far it may be off.

    An infinite error says that the number must not be trusted at all: whatever a trigger
    asks of the signal is then unknown, so it neither ends a phase nor, negated, ends it.
    """

    value: jax.Array  # [], float32; NaN until something was measured
    error: jax.Array  # [], float32 standard error; NaN where none is known, inf: no trust


class ProbeInputs(NamedTuple):
    """What one training step offers to a probe."""

    grads: Any  # raw gradients, shaped like the parameters
    rows: Any  # the same gradients in the metric of the running phase
    params: Any  # the whole parameter tree, or None
    batch: Any  # the user's `batch=`, or None
    key: jax.Array  # typed PRNG key, fresh for this step
    step: jax.Array  # [], int32


@dataclasses.dataclass(frozen=True)
class Probe:
    """A cadenced measurement: pure functions over a state that is a pytree.

    The state must have an int32 field `evaluations`, incremented whenever `read`
    changes: this is how the controller knows that a number is new.

    Attributes:
      signals: names of the estimates that `read` returns.
      init: `params -> state`; works on `jax.ShapeDtypeStruct` leaves.
      due: `(state, step) -> bool []`; cheap, evaluated at every step. The step is 0 at the
        first update, and again at the first one after `fgo_jax.restart`.
      measure: `(inputs, state) -> state`; runs inside one `jax.lax.cond`.
      read: `state -> {name: Estimate}`; cheap, evaluated at every step.
      requires: the fields of `ProbeInputs` that must not be None, of "params"
        and "batch".
      renew: `state -> state`; drops what was gathered but not yet read, when the
        metric of the rows changes.
      check: `(inputs) -> None`; raises at trace time where the inputs do not fit.
    """

    signals: tuple[str, ...]
    init: Callable[[Any], Any]
    due: Callable[[Any, jax.Array], jax.Array]
    measure: Callable[[ProbeInputs, Any], Any]
    read: Callable[[Any], dict[str, Estimate]]
    requires: tuple[str, ...] = ()
    renew: Callable[[Any], Any] = lambda state: state
    check: Callable[[ProbeInputs], None] = lambda inputs: None
