"""AutoDrop: the rate falls when the direction of travel turns at a settled pace."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.rival_triggers.readings import exact
from fgo_jax import _checks
from fgo_jax.linalg import trees
from fgo_jax.probes.probe import Probe, ProbeInputs
from fgo_jax.triggers import Observation, Trigger
from fgo_jax.triggers.trigger import condition


class AngularVelocityState(NamedTuple):
    evaluations: jax.Array  # [], int32; angles measured
    points: jax.Array  # [], int32; parameters seen
    point: Any  # f32, shaped like the parameters; the last ones seen
    travel: Any  # f32, shaped like the parameters; the way that led there
    angle: jax.Array  # [], float32; degrees


def angular_velocity(every: int = 20) -> Probe:
    r"""Measures the angle between successive displacements of the parameters, in degrees.

    With :math:`s_i = \theta_{i+1} - \theta_i` over windows of ``every`` steps,
    ``angular_velocity`` is :math:`\arccos(\langle s_i, s_{i-1} \rangle / (\|s_i\|
    \|s_{i-1}\|))`; NaN where a displacement is zero. The source's window is an epoch.

    State: eight bytes per parameter, as an angle needs three points.
    """
    _checks.integer("every", every)

    def init(params: Any) -> AngularVelocityState:
        return AngularVelocityState(
            evaluations=jnp.zeros([], jnp.int32),
            points=jnp.zeros([], jnp.int32),
            point=optax.tree.zeros_like(params, jnp.float32),
            travel=optax.tree.zeros_like(params, jnp.float32),
            angle=jnp.full([], jnp.nan, jnp.float32),
        )

    def measure(inputs: ProbeInputs, state: AngularVelocityState) -> AngularVelocityState:
        now = optax.tree.cast(inputs.params, jnp.float32)
        travel = jax.tree.map(jnp.subtract, now, state.point)
        known = state.points >= 2
        return AngularVelocityState(
            evaluations=state.evaluations + known.astype(jnp.int32),
            points=state.points + 1,
            point=now,
            travel=travel,
            angle=jnp.where(known, _angle(travel, state.travel), state.angle),
        )

    return Probe(
        signals=("angular_velocity",),
        init=init,
        due=lambda state, step: step % every == 0,
        measure=measure,
        read=lambda state: exact(angular_velocity=state.angle),
        requires=("params",),
    )


def _angle(a: Any, b: Any) -> jax.Array:
    norms = jnp.sqrt(trees.sum_squares(a)) * jnp.sqrt(trees.sum_squares(b))
    cosine = trees.vdot(a, b) / norms
    return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))


class SaturatedState(NamedTuple):
    previous: jax.Array  # [], float32; NaN at first


def saturated(
    signal: str = "angular_velocity", tolerance: float = 0.5, patience: int = 1
) -> Trigger:
    r"""Holds when a signal moves by less than ``tolerance`` between two measurements.

    Args:
      signal: in degrees.
      tolerance: the source begins with hundredths of a degree, for windows of an epoch of
        hundreds of steps, divides by the drop's factor after each drop, and stops at one
        degree. Shorter windows turn less evenly, hence the larger default.
      patience: measurements in a row.

    Source: Teng et al. (2021), AutoDrop; its waiting period of some epochs between
    saturation and drop, in which weights are averaged, is left out.
    """
    _checks.positive("tolerance", tolerance)

    def judge(observation: Observation, state: SaturatedState):
        value, _, fresh = observation.signals[signal]
        change = jnp.abs(value - state.previous)
        # A comparison with NaN is False: nothing holds and nothing fails at the first one.
        holds, fails = change < tolerance, change >= tolerance
        return fresh & jnp.isfinite(value), holds, fails, SaturatedState(value)

    def init() -> SaturatedState:
        return SaturatedState(jnp.full([], jnp.nan, jnp.float32))

    return condition(f"saturated({signal})", init, judge, signals=(signal,), patience=patience)
