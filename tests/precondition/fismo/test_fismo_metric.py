"""The metric of FISMO from its state, and the size of its updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo

BETA, B2, EPS = 0.9, 0.95, 1e-8
TREE = {"matrix": (3, 5), "vector": (4,)}


def trees(count):
    rng = np.random.default_rng(0)
    return [
        {name: jnp.float32(rng.standard_normal(shape)) for name, shape in TREE.items()}
        for _ in range(count)
    ]


def made(**options):
    return fgo.precondition.scale_by_fismo(BETA, adam_b2=B2, eps=EPS, **options)


@pytest.fixture(scope="module")
def run():
    """State after three updates, and a gradient that comes after them."""
    transform = made()
    *before, last = trees(4)
    state = transform.init(last)
    update = jax.jit(transform.update)
    for grads in before:
        _, state = update(grads, state)
    return transform, jax.device_get(state), last


def test_a_matrix_is_whitened_and_divided_by_the_root_of_its_momentums_size(run):
    transform, state, grads = run
    rows = transform.metric(grads, state)["matrix"]
    left, right = state.roots[0]
    whitened = np.float64(left) @ np.float64(grads["matrix"]) @ np.float64(right)
    momentum = np.float64(state.first_moment["matrix"]) / (1 - BETA**3)
    # The nuclear norm of an orthogonalised matrix of rank 3 is its size over root 3.
    size = np.linalg.norm(momentum) / np.sqrt(min(TREE["matrix"])) + EPS
    np.testing.assert_allclose(rows, whitened / np.sqrt(size), rtol=1e-4)


def test_a_vector_has_the_metric_of_adam(run):
    transform, state, grads = run
    rows = transform.metric(grads, state)["vector"]
    second = np.float64(state.second_moment[1]) / (1 - B2**3)
    wanted = np.float64(grads["vector"]) / np.sqrt(np.sqrt(second) + EPS)
    np.testing.assert_allclose(rows, wanted, rtol=1e-5)


def test_before_the_first_update_it_is_the_identity(run):
    transform, _, grads = run
    rows = transform.metric(grads, transform.init(grads))
    jax.tree.map(np.testing.assert_array_equal, rows, grads)


def test_a_consistent_rms_is_in_units_of_the_longer_side():
    grads = trees(1)[0]
    plain, scaled = made(), made(consistent_rms=0.2)
    one, _ = jax.jit(plain.update)(grads, plain.init(grads))
    two, _ = jax.jit(scaled.update)(grads, scaled.init(grads))
    factor = 0.2 * np.sqrt(max(TREE["matrix"]))
    np.testing.assert_allclose(two["matrix"], factor * one["matrix"], rtol=1e-5)
    np.testing.assert_array_equal(two["vector"], one["vector"])
