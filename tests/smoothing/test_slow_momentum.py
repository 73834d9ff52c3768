"""The slow momentum: its weights, its share, and how phases use it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.problems import mlp_gradient, mlp_params, trees_equal

after = fgo.triggers.after
RAMP = 10


def directions(count, size=3):
    return np.random.default_rng(0).standard_normal((count, size)).astype(np.float32)


def run(tx, rows):
    """All updates of a sequence of gradients, and the last state."""
    params = {"w": jnp.zeros(rows.shape[1])}

    def step(state, row):
        updates, state = tx.update({"w": row}, state, params)
        return state, updates["w"]

    state, updates = jax.lax.scan(step, tx.init(params), jnp.asarray(rows))
    return np.asarray(updates), state


def reference(rows, share, window, ramp):
    """The blend in float64, from the closed form of the weights: products of (1 - share)."""
    blended = []
    for t in range(len(rows)):
        rates = 1.0 / (window * np.arange(t + 1) + 1.0)
        kept = np.append(np.cumprod((1.0 - rates)[::-1])[::-1][1:], 1.0)
        mean = (rates * kept) @ rows[: t + 1].astype(np.float64)
        sigma = share * t / (t + ramp)
        blended.append((1 - sigma) * rows[t] + sigma * mean)
    return np.array(blended)


@pytest.mark.parametrize(("share", "window"), [(0.5, 0.25), (0.9, 1.0), (0.0, 0.1)])
def test_against_float64(share, window):
    rows = directions(60)
    got, state = run(fgo.slow_momentum(share, window=window, ramp_steps=RAMP), rows)
    np.testing.assert_allclose(got, reference(rows, share, window, RAMP), rtol=1e-5, atol=1e-6)
    assert int(state.averaged_steps) == (60 if share else 0)


def test_weights_grow_as_a_power_of_the_step():
    count, window = 400, 0.25
    rows = np.eye(count, dtype=np.float32)
    _, state = run(fgo.slow_momentum(0.5, window=window), rows)
    weights = np.asarray(state.mean["w"])
    later = np.arange(100, count)
    slope = np.polyfit(np.log(later), np.log(weights[later]), 1)[0]
    assert slope == pytest.approx(1 / window - 1, abs=0.05)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)


def test_what_directions_agree_on_passes_at_full_length():
    rows = np.ones((50, 2), np.float32)
    got, _ = run(fgo.slow_momentum(0.8), rows)
    np.testing.assert_allclose(got, 1.0, rtol=1e-6)


def test_noise_is_damped_by_what_the_share_leaves():
    rows = np.random.default_rng(1).standard_normal((3000, 40)).astype(np.float32)
    got, _ = run(fgo.slow_momentum(0.75, ramp_steps=1), rows)
    # A mean over about 1/window of many steps adds next to nothing of its own.
    assert got[1500:].std() == pytest.approx(0.25, rel=0.03)


@pytest.mark.parametrize(
    "wrong", [{"share": 1.0}, {"share": -0.1}, {"window": 0.0}, {"ramp_steps": 0}]
)
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fgo.slow_momentum(**wrong)


def three(share):
    sgd = optax.identity()
    return fgo.phased(
        [
            fgo.acquisition(1e-2, transform=sgd),
            fgo.reask(1e-2, cut=0.0, transform=sgd, slow_share=share),
            fgo.execution(
                1e-2, cut=0.0, decay=fgo.decays.inverse_sqrt(), slow_share=share, transform=sgd
            ),
        ],
        [after(19), after(29)],
        handover_steps=RAMP,
    )  # fmt: skip


def test_phases_use_it_from_re_ask_on():
    rows = directions(120)
    got, _ = run(three(0.5), rows)
    np.testing.assert_allclose(got[:20], -1e-2 * rows[:20], rtol=1e-6)
    # Re-ask begins anew: what acquisition saw is not in the mean.
    wanted = reference(rows[20:50], 0.5, 0.25, RAMP)
    np.testing.assert_allclose(got[20:50], -1e-2 * wanted, rtol=2e-5, atol=1e-7)


def test_the_share_stays_in_execution_as_the_rate_falls():
    tx = three(0.5)
    params = mlp_params()

    def step(carry, number):
        params, state = carry
        grads = mlp_gradient(params, number)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), fgo.telemetry(state)

    _, record = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(300))
    record = jax.tree.map(np.asarray, record)
    assert np.all(record["slow_share"][:20] == 0)
    began = int(record["started/execution"][-1])
    factor = 1 / np.sqrt(1 + np.arange(300 - began) / began)
    np.testing.assert_allclose(
        record["learning_rate"][began + RAMP :], 1e-2 * factor[RAMP:], rtol=1e-5
    )
    count = np.arange(300 - began) + began - 20
    wanted = 0.5 * count / (count + RAMP)
    np.testing.assert_allclose(record["slow_share"][began:], wanted, rtol=1e-5)


def _ringing(share):
    """Height of the second swing over the first of the direction that rings most.

    Directions from flat to stiff, pushed by a mean of the past, under a rate that falls as 1/t.
    """
    began, stiffness = 2000, jnp.geomspace(0.1, 1000.0, 41)
    tx = fgo.slow_momentum(share, ramp_steps=1)

    def step(carry, t):
        x, state = carry
        direction, state = tx.update(x, state)
        x = x - stiffness / (began + t) * direction
        return (x, state), x

    start = jnp.zeros_like(stiffness)
    state = tx.init(start)._replace(averaged_steps=jnp.int32(began), mean=start - 1.0)
    _, path = jax.lax.scan(step, (start, state), jnp.arange(40_000.0))
    path = np.asarray(path)
    return np.max(-path.min(0) / path.max(0))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_damping_ratio_is_the_root_of_what_the_share_leaves(share):
    damping = np.sqrt(1 - share)
    swing = np.exp(-np.pi * damping / np.sqrt(1 - damping**2))
    assert _ringing(share) == pytest.approx(swing, rel=0.02)


def test_no_share_keeps_no_state():
    params = mlp_params()
    assert three(None).init(params).slow == ()
    assert "slow_share" not in fgo.telemetry(three(None).init(params))
    tx = fgo.target_acquisition(1e-3, slow_share=None, decay=fgo.decays.cosine())
    assert tx.init(params).slow == ()


def test_a_step_that_is_not_finite_leaves_it_as_it_was():
    tx = three(0.5)
    params = {"w": jnp.zeros(3)}
    _, state = run(tx, directions(40))
    updates, after_nan = tx.update({"w": jnp.array([1.0, jnp.nan, 0.0])}, state, params)
    assert trees_equal(after_nan.slow, state.slow)
    np.testing.assert_array_equal(updates["w"], 0.0)


def test_a_phase_alone_has_one_of_its_own():
    rows = directions(80)
    phase = fgo.reask(0.1, cut=0.0, transform=optax.identity(), slow_share=0.5)
    tx = fgo.phased([phase], [])
    got, _ = run(tx, rows)
    np.testing.assert_allclose(got, -0.1 * reference(rows, 0.5, 0.25, 40), rtol=1e-4, atol=1e-6)


def test_bfloat16_directions_have_a_float32_mean():
    tx = fgo.slow_momentum(0.5)
    params = {"w": jnp.zeros(3, jnp.bfloat16)}
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    assert state.mean["w"].dtype == jnp.float32


def test_it_takes_the_arguments_of_other_transformations():
    tx = fgo.slow_momentum(0.5)
    updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=1.0)
    np.testing.assert_array_equal(updates, jnp.ones(2))


@pytest.mark.parametrize("share", [None, 0.0])
def test_a_share_that_is_off_costs_nothing(share):
    tx = fgo.target_acquisition(0.1, slow_share=share, decay=fgo.decays.hyperbolic())
    assert tx.init(jnp.ones(2)).slow == ()


def test_an_injected_share_may_become_another():
    optimizer = optax.inject_hyperparams(fgo.target_acquisition, static_args=fgo.STATIC_ARGS)
    tx = optimizer(0.1, slow_share=0.0, decay=fgo.decays.hyperbolic())
    params = jnp.ones(2)
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert state.inner_state.slow.mean.shape == (2,)


def test_a_scheduled_share_may_reach_zero_beside_an_adaptive_decay():
    def make(slow_share):
        decay = fgo.decays.adaptive(10)
        phase = fgo.execution(0.1, decay=decay, transform=optax.identity(), slow_share=slow_share)
        return fgo.phased([phase], [])

    # An array, as inject_hyperparams passes it outside of jax.jit.
    tx = make(jnp.zeros([]))
    assert jax.eval_shape(tx.init, jnp.ones(2)).slow.mean.shape == (2,)
    with pytest.raises(ValueError, match="positive slow_share"):
        make(0.0)
