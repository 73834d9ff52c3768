"""A probe that reads only the parameters: its signals are computed, not estimated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.probes import Estimate, Probe


def parameter_probe(
    init: Callable[[Any], Any], measure: Callable[[Any, Any], Any],
    read: Callable[[Any], dict[str, jax.Array]], signals: tuple[str, ...], every: int = 1,
) -> Probe:  # fmt: skip
    """`measure` maps (parameters, state) to a state; no rival trigger asks for standard errors."""

    def estimates(state: Any) -> dict[str, Estimate]:
        unknown = jnp.full([], jnp.nan, jnp.float32)
        return {name: Estimate(value, unknown) for name, value in read(state).items()}

    return Probe(
        signals=signals, init=init, due=lambda state, step: step % every == 0,
        measure=lambda inputs, state: measure(inputs.params, state), read=estimates,
        requires=("params",),
    )  # fmt: skip
