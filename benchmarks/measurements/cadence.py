"""When a probe measures, asked of the probe itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.probes import Probe, ProbeInputs


def cadence(probe: Probe, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """[num_steps] each: whether the probe is due, and how often its estimates have changed.

    The probe runs on a tree of one parameter, since its cadence does not depend on gradients.
    One that needs a model is never run, so its cadence must be fixed and its count stays 0.
    """
    params = {"w": jnp.ones(1)}
    inputs = ProbeInputs(params, params, params, None, jax.random.key(0), jnp.int32(0))

    def step(state: Any, number: jax.Array) -> tuple[Any, Any]:
        due = probe.due(state, number)
        if "batch" not in probe.requires:
            now = inputs._replace(step=number)
            state = jax.lax.cond(due, probe.measure, lambda _, old: old, now, state)
        return state, (due, state.evaluations)

    scan = jax.jit(lambda: jax.lax.scan(step, probe.init(params), jnp.arange(num_steps))[1])
    due, evaluations = scan()
    return np.asarray(due), np.asarray(evaluations)
