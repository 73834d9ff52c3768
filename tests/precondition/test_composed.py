"""chain and masked: the updates of optax, and the metric of the preconditioner inside."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.trial import keeps_scale
from tests.precondition.natural_gradients import MAKERS, PARAMS, random_gradients, run
from tests.problems import trees_equal

MASK = {"Dense_0": True, "Dense_1": {"kernel": True, "bias": False}}


def test_a_chain_has_the_updates_of_optax_and_the_metric_of_its_member():
    kronecker = fgo.scale_by_kronecker_fisher()
    members = (optax.clip_by_global_norm(1.0), kronecker, optax.scale_by_learning_rate(0.1))
    ours, plain = fgo.precondition.chain(*members), optax.chain(*members)
    grads = random_gradients(3)
    (updates, states), (expected, others) = run(ours, grads), run(plain, grads)
    assert trees_equal(updates, expected)
    assert trees_equal(states, others)
    rows = ours.metric(grads[0], states[-1])
    assert trees_equal(rows, kronecker.metric(grads[0], states[-1][1]))
    assert not hasattr(plain, "metric")


def test_masked_has_the_updates_of_optax_and_the_identity_outside():
    for inner in (fgo.scale_by_kronecker_fisher(), fgo.scale_by_fismo()):
        ours = fgo.precondition.masked(inner, MASK)
        grads = random_gradients(3)
        (updates, states), (expected, _) = run(ours, grads), run(optax.masked(inner, MASK), grads)
        assert trees_equal(updates, expected)
        rows = ours.metric(grads[0], states[-1])
        np.testing.assert_array_equal(rows["Dense_1"]["bias"], grads[0]["Dense_1"]["bias"])
        part = {"Dense_0": grads[0]["Dense_0"], "Dense_1": grads[0]["Dense_1"] | {}}
        part["Dense_1"]["bias"] = optax.MaskedNode()
        alone = inner.metric(part, states[-1].inner_state)
        assert trees_equal(rows["Dense_0"], alone["Dense_0"])
        assert not np.array_equal(rows["Dense_0"]["kernel"], grads[0]["Dense_0"]["kernel"])


def test_a_copy_has_all_that_the_original_has():
    original = fgo.scale_by_kronecker_fisher(momentum_dtype="bfloat16", centred=True)
    own = jax.tree.leaves(vars(original))
    copies = {  # pickle goes the way of copy
        "copy": copy.copy(original),
        "deepcopy": copy.deepcopy(original),
        "_replace": original._replace(init=original.init),
        "tree": jax.tree.map(lambda function: function, original),
        "in a chain": copy.deepcopy((original,))[0],
    }
    for way, found in copies.items():
        assert found == original, way
        assert jax.tree.leaves(vars(found)) == own, way


def test_they_keep_whether_the_scale_is_kept():
    for name, expected in (("kronecker", True), ("kronecker, centred", False), ("kfac", False)):
        inner = MAKERS[name]()
        for outer in (
            fgo.precondition.chain(inner, optax.scale(0.5)),
            fgo.precondition.masked(inner, MASK),
            fgo.precondition.chain(optax.trace(0.9), fgo.precondition.masked(inner, MASK)),
        ):
            assert outer.keeps_scale is expected, name
    adam, natural = optax.scale_by_adam(), MAKERS["kfac"]()
    for weight, expected in ((1.0, None), (0.5, False), (optax.linear_schedule(1, 0, 9), False)):
        assert fgo.graft(adam, natural, weight).keeps_scale is expected
    assert keeps_scale(fgo.graft(adam, natural))  # Adam says nothing of itself, and K-FAC's is void
    kronecker = fgo.scale_by_kronecker_fisher()
    assert fgo.graft(natural, kronecker).keeps_scale is False
    assert fgo.graft(natural, kronecker, 0.0).keeps_scale is True


def test_all_that_hold_a_direction_keep_the_dtype_of_its_momentum():
    half = fgo.scale_by_kronecker_fisher(momentum_dtype="bfloat16")
    for outer in (
        fgo.precondition.chain(half, optax.scale(0.5)),
        fgo.precondition.masked(half, MASK),
        fgo.scale_by_layer_noise(half),
        fgo.graft(optax.scale_by_adam(), half),
    ):
        assert outer.momentum_dtype == half.momentum_dtype == "bfloat16"


def test_phases_take_them():
    transform = fgo.precondition.chain(
        optax.clip_by_global_norm(1.0),
        fgo.precondition.masked(fgo.scale_by_kronecker_fisher(), MASK),
    )
    tx = fgo.phased([fgo.acquisition(0.1, transform=transform)], [])
    updates, _ = run(tx, random_gradients(2))
    assert jax.tree.structure(updates[-1]) == jax.tree.structure(PARAMS)


def test_wrong_members():
    kronecker = fgo.scale_by_kronecker_fisher()
    for members in ((optax.identity(),), (kronecker, kronecker)):
        with pytest.raises(ValueError, match="exactly one member with a metric"):
            fgo.precondition.chain(*members)
    with pytest.raises(ValueError, match=r"inner has none: use optax\.masked"):
        fgo.precondition.masked(optax.identity(), MASK)


def test_a_complex_leaf_outside_of_the_mask_is_measured_with_both_of_its_parts():
    inner = fgo.scale_by_kronecker_fisher()
    params = {"w": jnp.ones((2, 2)), "c": jnp.full(1, 3 + 4j)}
    ours = fgo.precondition.masked(inner, {"w": True, "c": False})
    rows = ours.metric(params, ours.init(params))
    assert sorted(np.ravel(rows["c"])) == [3.0, 4.0]
