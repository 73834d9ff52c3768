"""How far each limit goes, from what it measured."""

import math

import jax.numpy as jnp
import pytest

from fgo_jax.precondition.step_limits.along_update import Step
from fgo_jax.precondition.step_limits.friction_limit import _friction
from fgo_jax.precondition.step_limits.softmax_radius import softmax_radius


def step(norm, slope=0.0):
    return Step(jnp.float32(norm), jnp.float32(slope))


@pytest.mark.parametrize(
    ("curvature", "damping", "slope", "factor"),
    [
        (2.0, 0.0, -3.0, 0.5),  # the minimum of -3 s + s^2 lies at 1.5, half of the norm
        (2.0, 4.0, -3.0, 1 / 6),
        (2.0, 0.0, 3.0, -0.5),
        (0.0, 0.0, -3.0, math.inf),
        (0.0, 0.0, 3.0, 0.0),
    ],
)
def test_friction_limits_a_step_to_the_minimum_along_it(curvature, damping, slope, factor):
    limit = _friction("squared_error", damping, None)
    found = limit.scale(jnp.float32(curvature), step(3.0, slope))
    assert float(found) == pytest.approx(factor)


def test_the_radius_of_the_softmax_is_in_units_of_pi():
    limit = softmax_radius(0.5)
    assert float(limit.scale(jnp.float32(2.0), step(10.0))) == pytest.approx(math.pi / 40)
    assert float(limit.scale(jnp.float32(0.0), step(10.0))) == math.inf
