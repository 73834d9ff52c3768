"""How far each limit goes, from what it measured, and never beyond the update itself."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.precondition.step_limits.along_update import Step
from fgo_jax.precondition.step_limits.friction_limit import _friction
from fgo_jax.precondition.step_limits.softmax_radius import (
    clip_by_softmax_radius,
    softmax_radius,
)


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


def test_a_short_update_passes_unchanged():
    tx = clip_by_softmax_radius(lambda p, x: x @ p, 0.5)
    params, update = jnp.eye(2), jnp.float32([[1e-3, -1e-3], [0.0, 0.0]])
    found, state = tx.update(update, tx.init(params), params, batch=jnp.eye(2))
    np.testing.assert_array_equal(found, update)
    assert float(state.shrinkage) == 1.0


def test_leaves_that_are_too_long_only_together_do_not_move():
    # Each square is a float32, their sum is not.
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = clip_by_softmax_radius(lambda p, x: x * (p["a"] + p["b"]), 0.5)
    update = {"a": jnp.float32([1.4e19, 0.0]), "b": jnp.float32([0.0, 1.4e19])}
    found, state = tx.update(update, tx.init(params), params, batch=jnp.ones((1, 2)))
    assert not any(leaf.any() for leaf in found.values())
    assert float(state.shrinkage) == 0.0
