"""AutoDrop: the rate falls when the direction of travel turns at a constant pace."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.rival_triggers.parameter_probe import parameter_probe
from fgo_jax.linalg import sum_squares, vdot
from fgo_jax.probes import Probe
from fgo_jax.triggers import Observation, Trigger, condition


class AngularVelocityState(NamedTuple):
    evaluations: jax.Array  # [], int32; angles measured
    points: jax.Array  # [], int32; parameters seen
    point: Any  # f32, shaped like the parameters; the last ones seen
    travel: Any  # f32, shaped like the parameters; the displacement that led there
    angle: jax.Array  # [], float32; degrees


def angular_velocity(every: int = 20) -> Probe:
    """Measures the angle between successive displacements of the parameters, in degrees.

    Each is over ``every`` steps, an epoch in the source; the angle is NaN where one is zero. State:
    eight bytes per parameter, since an angle needs three points.
    """

    def init(params: Any) -> AngularVelocityState:
        return AngularVelocityState(
            evaluations=jnp.zeros([], jnp.int32),
            points=jnp.zeros([], jnp.int32),
            point=optax.tree.zeros_like(params, jnp.float32),
            travel=optax.tree.zeros_like(params, jnp.float32),
            angle=jnp.full([], jnp.nan, jnp.float32),
        )

    def measure(params: Any, state: AngularVelocityState) -> AngularVelocityState:
        now = optax.tree.cast(params, jnp.float32)
        travel, known = jax.tree.map(jnp.subtract, now, state.point), state.points >= 2
        return AngularVelocityState(
            evaluations=state.evaluations + known.astype(jnp.int32), points=state.points + 1,
            point=now, travel=travel,
            angle=jnp.where(known, _angle(travel, state.travel), state.angle),
        )  # fmt: skip

    def read(state: AngularVelocityState) -> dict[str, jax.Array]:
        return {"angular_velocity": state.angle}

    return parameter_probe(init, measure, read, ("angular_velocity",), every)


def _angle(a: Any, b: Any) -> jax.Array:
    cosine = vdot(a, b) / (jnp.sqrt(sum_squares(a)) * jnp.sqrt(sum_squares(b)))
    return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)))


def saturated(tolerance: float = 0.5) -> Trigger:
    r"""Holds when ``angular_velocity`` moves by less than ``tolerance`` between two measurements.

    Args:
      tolerance: in degrees. The source begins with hundredths of a degree, for windows of an
        epoch, and ends at one. Shorter windows turn less evenly, hence the larger default.

    Source: Teng et al. (2021), AutoDrop. Left out: its waiting period before a drop.
    """

    def judge(observation: Observation, previous: jax.Array):
        value, _, fresh = observation.signals["angular_velocity"]
        change = jnp.abs(value - previous)
        # A comparison with NaN is False: nothing holds and nothing fails at the first one.
        holds, fails = change < tolerance, change >= tolerance
        return fresh & jnp.isfinite(value), holds, fails, value

    def init() -> jax.Array:
        return jnp.full([], jnp.nan, jnp.float32)

    return condition("angular_velocity_saturated", init, judge, signals=("angular_velocity",))
