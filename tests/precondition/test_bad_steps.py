"""A gradient that float32 cannot square, and what becomes of the steps after it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.precondition.natural_gradients import MAKERS, finite, random_gradients, rms, run

transforms = pytest.mark.parametrize("name", MAKERS)
BAD, STEPS = 4, 30


def with_bad(value, every_leaf=False):
    grads = random_gradients(STEPS)
    bad = {k: dict(leaf) for k, leaf in grads[BAD].items()}
    bad["Dense_0"] = {
        "kernel": bad["Dense_0"]["kernel"].at[0, 0].set(value),
        "bias": bad["Dense_0"]["bias"].at[1].set(value),
    }
    return [*grads[:BAD], bad, *grads[BAD + 1 :]]


@functools.cache
def plain_updates(name):
    return run(name, random_gradients(STEPS))[0]


@transforms
@pytest.mark.parametrize("value", [1e20, -3e38, jnp.inf, jnp.nan])
def test_what_float32_cannot_square_is_skipped(name, value):
    updates, states = run(name, with_bad(value))
    plain = plain_updates(name)
    assert finite(states)
    assert finite(updates)
    for leaf in ("kernel", "bias"):
        # A graft skips the entry, all others the leaf.
        assert rms(updates[BAD]["Dense_0"][leaf]) < 10 * rms(plain[BAD]["Dense_0"][leaf])
        assert float(updates[BAD]["Dense_0"][leaf].ravel()[0 if leaf == "kernel" else 1]) == 0
    for layer, leaf in ((x, y) for x in plain[0] for y in plain[0][x]):
        got, expected = rms(updates[-1][layer][leaf]), rms(plain[-1][layer][leaf])
        assert 0.5 * expected < got < 2 * expected, (layer, leaf)


@transforms
def test_a_large_gradient_whose_square_is_finite_is_outlived(name):
    updates, states = run(name, with_bad(1e12))
    assert finite((updates, states))
    # The clipped, orthogonalised and shortened ones never exceed their bounds. Others step with a
    # remainder b1^t of it, as momentum does.
    if not name.startswith(("kronecker, centred", "low rank", "kfac, averaged")):
        assert max(rms(u) for tree in updates for u in jax.tree.leaves(tree)) < 10


@pytest.mark.parametrize("value", [1e20, jnp.nan])
def test_the_moments_of_a_skipped_leaf_stay_as_they_were(value):
    for name in ("kronecker", "fismo", "diagonal", "low rank"):
        _, states = run(name, with_bad(value)[: BAD + 1])
        before, after = (s.first_moment for s in states[-2:])
        if name == "kronecker":  # whose moments lie by stacks, in which Dense_0 comes first
            before, after = ([stack[0] for stack in m] for m in (before, after))
        else:
            before, after = before["Dense_0"], after["Dense_0"]
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_graft_outlives_what_adam_does_not():
    bad = with_bad(jnp.nan)
    assert not finite(run(optax.scale_by_adam(), bad)[1])
    updates, _ = run("graft", bad)
    good = plain_updates("graft")
    # Without the noise of one gradient of thirty, of weight 0.9^25.
    for a, b in zip(jax.tree.leaves(updates[-1]), jax.tree.leaves(good[-1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.3, atol=0.1)


def linear(params, batch):
    return batch["x"] @ params["w"]


UNBOUNDED = {
    "low rank": lambda: fgo.scale_by_low_rank_fisher(
        fgo.curvature.ggn(linear, "squared_error"), rank=1, damping=1e-3, unit_gain=False
    ),
    "kfac": lambda: fgo.scale_by_kfac(
        linear, "squared_error", damping=1e-4, norm_constraint=None, diagonal=["w"]
    ),
    "graft": lambda: fgo.graft(optax.trace(0.99), optax.scale_by_sign()),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_float16_cannot_hold_is_zero(name):
    tx, params = UNBOUNDED[name](), {"w": jnp.ones((3, 2))}
    grads = {"w": jnp.full((3, 2), 3e4, jnp.float16).at[0, 0].set(1e-3)}
    batch, state = {"x": jnp.eye(3)[:1].repeat(8, 0)}, tx.init(params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(grads, state, params, batch=batch)
    assert updates["w"].dtype == jnp.float16
    assert finite((updates, state))
    assert bool((updates["w"] == 0).any())


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("corrected", [True, False])
def test_a_constant_gradient_is_no_noise_to_a_centred_transform(power, corrected):
    tx = fgo.scale_by_kronecker_fisher(power=power, centred=True, corrected=corrected, damping=0.1)
    grads = random_gradients(20)
    updates, states = run(tx, [*grads, *[grads[-1]] * 300])
    # The momentum settles within a few steps; the noise is known from then on.
    for leaf, after in zip(jax.tree.leaves(updates[40]), jax.tree.leaves(updates[-1]), strict=True):
        assert 0.5 * rms(leaf) < rms(after) < 2 * rms(leaf)
    assert finite(states)
    # From the first step on; the damping bounds what one observation says.
    updates, _ = run(tx, [grads[0]] * 300)
    for leaf, after in zip(jax.tree.leaves(updates[40]), jax.tree.leaves(updates[-1]), strict=True):
        assert rms(after) < 2 * rms(leaf)


def test_a_summed_loss_is_within_the_damping_of_fismo():
    """Gradients of a root mean square of one are the limit; larger ones weigh no more."""
    grads = random_gradients(STEPS)
    mean, _ = run(fgo.scale_by_fismo(), grads)
    summed, _ = run(fgo.scale_by_fismo(), [jax.tree.map(lambda g: 8192 * g, t) for t in grads])
    for tree, reference in zip(summed, mean, strict=True):
        for layer in tree:
            u, v = tree[layer]["kernel"], reference[layer]["kernel"]
            assert rms(u) < 1.5 * rms(v)
