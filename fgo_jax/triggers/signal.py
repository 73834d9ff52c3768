"""What a trigger sees: the signals of one step."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Signal(NamedTuple):
    """One number that a trigger reads: a measurement of the probe, the loss or a validation.

    Attributes:
      value: [], float32, in the signal's own unit. Between measurements it is the last one.
      error: [], float32, standard error of the value. NaN where none is known, as for the
        loss. Infinite where the value must not be trusted.
      fresh: [], bool. True only at the step that measured the value.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> loss = fgo.triggers.Signal(jnp.float32(2.3), jnp.float32(jnp.nan), jnp.asarray(True))
      >>> bool(loss.fresh)
      True

    Source: the definition above.
    """

    value: jax.Array
    error: jax.Array
    fresh: jax.Array


class Observation(NamedTuple):
    """What triggers see at one step.

    All of it is replicated scalars, so all devices reach the same decision.

    Attributes:
      signals: by name, those that the trigger reads: of the probe, ``loss`` if ``value=`` is
        passed to the update, and ``validation`` if ``validation_value=`` is (NaN: not measured
        at this step).
      phase_step: [], int32, updates since the phase began.
      total_step: [], int32, updates since training began.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> observation = fgo.triggers.Observation({}, jnp.int32(10), jnp.int32(110))
      >>> trigger = fgo.triggers.after(10)
      >>> int(trigger.update(observation, trigger.init())[0])
      1

    Source: the definition above.
    """

    signals: dict[str, Signal]
    phase_step: jax.Array
    total_step: jax.Array
