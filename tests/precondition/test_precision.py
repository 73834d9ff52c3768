"""Accelerators multiply float32 in lower precision unless a product says otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.precondition.kfac import roots
from fgo_jax.precondition.kfac.layers import layout
from fgo_jax.precondition.low_rank_fisher import reduced
from tests.precondition.natural_gradients import MAKERS, PARAMS
from tests.precondition.test_ensembles import equations

HIGHEST = jax.lax.Precision.HIGHEST


def imprecise(function, *arguments):
    """The shapes of all products that leave their precision to the device; how many there are."""
    products = [
        e
        for e in equations(jax.make_jaxpr(function)(*arguments).jaxpr)
        if e.primitive.name == "dot_general"
    ]
    low = [
        [v.aval.shape for v in e.invars]
        for e in products
        if e.params["precision"] not in (HIGHEST, (HIGHEST, HIGHEST))
    ]
    return low, len(products)


@pytest.mark.parametrize("name", [n for n in MAKERS if n.startswith(("kronecker", "shampoo"))])
def test_rotations_and_factors_are_exact(name):
    tx = MAKERS[name]()
    state = tx.init(PARAMS)
    for function in (tx.update, tx.metric):
        low, count = imprecise(function, PARAMS, state)
        assert count
        assert not low


@pytest.mark.parametrize("unit", [False, True])
def test_all_but_the_orthogonalisation_of_fismo_is_exact(unit):
    tx = fgo.scale_by_fismo(ns_steps=1, unit_gradients=unit)
    state = tx.init(PARAMS)
    assert not imprecise(tx.metric, PARAMS, state)[0]
    # Both matrices at once, and three products in a step of Newton and Schulz's iteration.
    assert len(imprecise(tx.update, PARAMS, state)[0]) == 3


def test_the_roots_and_the_norm_of_kfac_are_exact():
    tx = MAKERS["kfac"]()
    state = tx.init(PARAMS)
    assert not imprecise(tx.metric, PARAMS, state)[0]
    plan = layout(PARAMS, None, lambda path: False)

    def inverted(state):
        counts = tuple(jnp.ones((), jnp.int32) for _ in state.estimates)
        return roots.invert(plan, state.factors, counts, 0.1)

    assert not imprecise(inverted, state)[0]


def test_the_low_rank_damping_is_exact():
    state = MAKERS["low rank"]().init(PARAMS)
    leaves = jax.tree.leaves(PARAMS)
    low, count = imprecise(lambda s: reduced(s, leaves, jnp.ones(3)), state)
    assert count
    assert not low


def test_rounding_of_the_rotation_would_become_noise():
    """What bfloat16 products would do to a constant gradient of rank one: the reason for it all."""
    rng = np.random.default_rng(0)
    g = jnp.asarray(np.outer(rng.normal(size=24), rng.normal(size=32)), jnp.float32)
    tx = fgo.scale_by_kronecker_fisher()
    state = tx.init(g)
    for _ in range(12):
        u, state = jax.jit(tx.update)(g, state)
    cosine = float(jnp.sum(u * g) / jnp.linalg.norm(u) / jnp.linalg.norm(g))
    assert cosine > 0.99
