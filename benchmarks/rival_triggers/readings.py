"""What a rival's probe reads is computed, not estimated."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fgo_jax.probes.probe import Estimate


def exact(**values: jax.Array) -> dict[str, Estimate]:
    """Signals by name, without a standard error: no rival trigger asks for one."""
    return {name: Estimate(v, jnp.full([], jnp.nan, jnp.float32)) for name, v in values.items()}
