"""graft: whose length, whose direction, and what becomes of odd leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgo_jax.precondition import graft, scale_by_kronecker_fisher
from tests.precondition.sequences import run

SHAPES = {"w": (3, 4), "b": (4,), "s": (), "none": None}
STEPS = 12


def sequence():
    rng = np.random.default_rng(0)
    return [
        {
            k: None if s is None else jnp.asarray(10.0 ** rng.normal() * rng.normal(size=s), "f4")
            for k, s in SHAPES.items()
        }
        for _ in range(STEPS)
    ]


def adam(grads, b1=0.9, b2=0.999, eps=1e-8):
    m, v = 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def momentum(grads, decay=0.5):
    m = 0.0
    for g in grads:
        m = decay * m + g
        yield m


def norm(tree):
    return np.sqrt(sum(np.sum(x**2) for x in tree))


@pytest.mark.parametrize("global_norm", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.25, optax.linear_schedule(1.0, 0.0, 8)])
def test_equals_a_float64_reference_step_by_step(weight, global_norm):
    grads = sequence()
    tx = graft(optax.scale_by_adam(), optax.trace(0.5), weight, global_norm=global_norm)
    updates, state = run(tx, grads)
    keys = ["w", "b", "s"]
    doubles = [{k: np.asarray(g[k], np.float64) for k in keys} for g in grads]
    lengths = {k: list(adam([g[k] for g in doubles])) for k in keys}
    courses = {k: list(momentum([g[k] for g in doubles])) for k in keys}
    for t in range(STEPS):
        w = float(weight(t)) if callable(weight) else weight
        everything = [[x[k][t] for k in keys] for x in (lengths, courses)]
        for k in keys:
            m, d = everything if global_norm else ([lengths[k][t]], [courses[k][t]])
            expected = courses[k][t] * (norm(m) / norm(d)) ** w
            # 1 - 0.999^t is rounded in float32: 6e-8 / 2e-3, halved by the root.
            np.testing.assert_allclose(updates[t][k], expected, rtol=3e-5, err_msg=f"{k} {t}")
    assert updates[-1]["none"] is None
    assert int(state.graft_step) == STEPS


def test_at_weight_zero_it_is_the_direction_bit_for_bit():
    grads = sequence()
    plain, _ = run(optax.trace(0.5), grads)
    faded = graft(optax.scale_by_adam(), optax.trace(0.5), optax.linear_schedule(1.0, 0.0, 5))
    grafted, _ = run(faded, grads)
    jax.tree.map(np.testing.assert_array_equal, plain[5:], grafted[5:])


def test_of_a_transform_with_itself_it_is_that_transform():
    grads = sequence()
    plain, _ = run(optax.scale_by_adam(), grads)
    grafted, _ = run(graft(optax.scale_by_adam(), optax.scale_by_adam()), grads)
    # XLA fuses the two differently: a sum of entries of size one that cancels is rounded once more.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=3e-7), plain, grafted
    )


def test_extra_arguments_and_parameters_reach_both():
    def scale_by_extra(name):
        def update(updates, state, params, **extra):
            return jax.tree.map(lambda u, p: u * extra[name] * p, updates, params), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    tx = graft(scale_by_extra("left"), scale_by_extra("right"))
    params, grads = jnp.full(2, 10.0), jnp.array([3.0, 4.0])
    updates, _ = tx.update(grads, tx.init(params), params, left=2.0, right=-7.0, nobody=1)
    np.testing.assert_allclose(updates, [-60.0, -80.0], rtol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_zero_empty_and_non_finite_leaves(weight):
    tx = graft(optax.identity(), optax.scale(-2.0), weight)
    good = {"w": jnp.ones((2, 2)), "zero": jnp.zeros(3), "empty": jnp.zeros((0, 3))}
    bad = {**good, "bad": jnp.array([1.0, jnp.inf]), "nan": jnp.full(2, jnp.nan)}
    with_bad, _ = tx.update(bad, tx.init(bad))
    without, _ = tx.update(good, tx.init(good))
    for key in good:
        np.testing.assert_array_equal(with_bad[key], without[key])
    np.testing.assert_allclose(without["w"], -(2.0 ** (1 - weight)), rtol=1e-6)
    for key in ("zero", "bad", "nan"):
        np.testing.assert_array_equal(with_bad[key], 0.0)

    silent = graft(optax.set_to_zero(), optax.identity(), weight)
    updates, _ = silent.update(good, silent.init(good))
    assert not any(np.any(u) for u in jax.tree.leaves(updates))


def test_updates_have_the_gradients_dtype():
    for dtype in (jnp.bfloat16, jnp.float16):
        grads = {"w": jnp.ones((2, 3), dtype)}
        tx = graft(optax.scale_by_adam(mu_dtype=jnp.float32), optax.trace(0.5))
        updates, _ = run(tx, [grads, grads])
        assert updates[-1]["w"].dtype == dtype


@pytest.mark.parametrize("global_norm", [False, True])
def test_complex_updates_have_both_their_parts_and_the_norm_of_both(global_norm):
    turned = optax.stateless(lambda updates, params: jax.tree.map(lambda g: 5j * g, updates))
    tx = graft(optax.scale(2.0), turned, global_norm=global_norm)
    grads = {"w": jnp.array([3.0 + 4.0j, 1.0j])}
    bad = {"w": grads["w"].at[1].set(complex(0.0, np.nan))}
    (whole, dropped), _ = run(tx, [grads, bad])
    np.testing.assert_allclose(whole["w"], 2j * grads["w"], rtol=1e-6)
    np.testing.assert_array_equal(dropped["w"], 0.0)


def test_of_a_preconditioner_it_is_one():
    tx = graft(optax.scale_by_adam(), scale_by_kronecker_fisher())
    grads = jnp.ones((2, 3))
    _, state = run(tx, [grads])
    inner = scale_by_kronecker_fisher().metric(grads, state.direction_state)
    np.testing.assert_array_equal(tx.metric(grads, state), inner)
    assert not hasattr(graft(optax.scale_by_adam(), optax.identity()), "metric")


def test_wrong_weights():
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\]"):
        graft(optax.identity(), optax.identity(), 1.5)


@pytest.mark.parametrize("weight", [np.float32(0.5), jnp.float32(1.0), 0.0])
def test_a_weight_may_be_an_array_where_there_is_a_metric(weight):
    shrinking = scale_by_kronecker_fisher(centred=True)  # with the gradients
    transform = graft(shrinking, scale_by_kronecker_fisher(), weight)
    assert transform.keeps_scale == (weight == 0.0)
    injected = optax.inject_hyperparams(graft)
    injected(optax.scale_by_adam(), scale_by_kronecker_fisher(), weight=0.5).init(jnp.ones((2, 2)))
