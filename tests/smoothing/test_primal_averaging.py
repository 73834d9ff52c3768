"""Primal averaging against its three sequences, and against the methods that it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

STEPS, SIZE = 30, 4
RATES = 0.1 / (1.0 + 0.1 * np.arange(STEPS))


def gradient(y):
    """Of a function that is neither quadratic nor symmetric."""
    return jnp.arange(1.0, 1.0 + SIZE) * y + jnp.sin(3.0 * y)


def run(tx, steps=STEPS):
    """Parameters before each step, and what `eval_params` makes of them where there is an x."""
    start = jnp.linspace(-1.0, 2.0, SIZE)

    def shown(state, y):
        try:
            return fgo.eval_params(state, y)
        except ValueError:
            return y

    def step(carry, _):
        y, state = carry
        updates, new = tx.update(gradient(y), state, y)
        # The state before a step belongs to the parameters before it.
        return (y + updates, new), (y, shown(state, y))

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, steps))
    return scan((start, tx.init(start)))[1]


def sequences(mu_x, mu_y, rates):
    """x, y and z by their definition."""
    x = z = np.linspace(-1.0, 2.0, SIZE)
    ys, xs = [], []
    for n, rate in enumerate(rates):
        y = mu_y * x + (1 - mu_y) * z
        ys.append(y)
        xs.append(x)
        z = z - rate * (np.arange(1.0, 1.0 + SIZE) * y + np.sin(3.0 * y))
        slow = mu_x(n) if callable(mu_x) else mu_x
        x = slow * x + (1 - slow) * z
    return np.array(ys), np.array(xs)


@pytest.mark.parametrize(
    ("mu_x", "mu_y"), [(0.9, 0.7), (0.0, 0.5), (0.8, 1.0), (lambda n: n / (n + 1), 0.9)]
)
def test_the_three_sequences_at_any_law_of_the_rate(mu_x, mu_y):
    law = lambda n: jnp.asarray(RATES, jnp.float32)[n]  # noqa: E731
    tx = optax.chain(optax.sgd(law), fgo.scale_by_primal_averaging(mu_x, mu_y))
    y, x = run(tx)
    wanted_y, wanted_x = sequences(mu_x, mu_y, RATES)
    np.testing.assert_allclose(y, wanted_y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x, wanted_x, rtol=1e-5, atol=1e-6)


def test_injected_weights_are_the_schedules_inside_a_jit_and_outside():
    tx = optax.inject_hyperparams(fgo.scale_by_primal_averaging)(lambda n: n / (n + 1.0), mu_y=0.9)
    expected, found = fgo.scale_by_primal_averaging(lambda n: n / (n + 1), 0.9), []
    for update in (tx.update, jax.jit(tx.update), expected.update):
        state = (expected if update is expected.update else tx).init(jnp.float32(0.0))
        for n in range(4):
            last, state = update(jnp.float32(1.0 + n), state)
        found.append(last)
    np.testing.assert_allclose(found, found[-1], rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_a_member_at_the_effective_rate(nesterov):
    beta = 0.8
    mine = fgo.scale_by_primal_averaging(beta, beta if nesterov else 1.0)
    y, _ = run(optax.chain(mine, optax.scale(-0.1)))
    plain = optax.trace(beta, nesterov=nesterov)
    wanted, _ = run(optax.chain(plain, optax.scale(-0.1 * (1 - beta))))
    np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=1e-6)


def test_schedule_free_is_a_member():
    mine = fgo.scale_by_primal_averaging(lambda n: n / (n + 1), 0.9)
    y, x = run(optax.chain(optax.sgd(0.1), mine))
    tx = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)
    wanted, _ = run(tx)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
    # Each x is the mean of all z, so successive ones differ by a share that falls as 1/n.
    z = (np.asarray(y) - 0.9 * np.asarray(x)) / 0.1
    np.testing.assert_allclose(x[-1], z[1:].mean(0), rtol=1e-3, atol=1e-5)


def huber(y, d):
    return jnp.where(jnp.abs(y) < d, y * y / 2, d * jnp.abs(y) - d * d / 2)


@pytest.mark.parametrize("kappa", [4.0, 100.0])
def test_triple_momentum_keeps_its_bound_and_reaches_it(kappa):
    # Quadratics of every curvature, and curvature that falls from L to m away from the minimum.
    lowest = np.append(np.geomspace(1.0, kappa, 21), np.ones(21))
    width = np.append(np.ones(21), np.geomspace(1e-3, 1.0, 21))

    def f(y):
        bent = (kappa - 1.0) * huber(y, width) * (jnp.arange(42) >= 21)
        return lowest * y * y / 2 + bent

    with jax.enable_x64(True):
        tx = fgo.triple_momentum(kappa, 1.0)
        start = jnp.ones(42)
        rho = 1 - kappa**-0.5
        mu_y = 1 - (1 - rho**2 / (2 - rho)) / (1 + rho)

        def step(carry, _):
            y, state = carry
            x = fgo.eval_params(state, y)
            z = (y - mu_y * x) / (1 - mu_y)
            w = x + (2 + rho) / (1 + rho) * (z - x)
            updates, state = tx.update(jax.grad(lambda y: jnp.sum(f(y)))(y), state, y)
            return (y + updates, state), jnp.stack([f(p) for p in (w, x, y, z)])

        carry = (start, tx.init(start))
        _, values = jax.jit(lambda c: jax.lax.scan(step, c, None, 40))(carry)
    ratio = np.asarray(values) / (rho ** (2.0 * np.arange(40)) * kappa**2 / 2)[:, None, None]
    worst = ratio.max((0, 2))
    assert worst[0] == pytest.approx(1.0, abs=1e-6)
    assert worst[1] == pytest.approx(1.0 / kappa, rel=1e-6)
    assert worst[2:].max() < 0.8


def test_heavy_ball_cycles_where_triple_momentum_converges():
    def bent(y):
        return jnp.where(y < 1, 25 * y, jnp.where(y < 2, y + 24, 25 * y - 24))

    def last(tx):
        def step(carry, _):
            y, state = carry
            updates, state = tx.update(bent(y), state, y)
            return (y + updates, state), y

        start = jnp.float32(3.3)
        return jax.jit(lambda c: jax.lax.scan(step, c, None, 300))((start, tx.init(start)))[1][-3:]

    # The numbers that are best for quadratics of curvature 1 to 25.
    beta, effective = (4 / 6) ** 2, 4 / 36
    ball = fgo.scale_by_primal_averaging(beta, 1.0)
    cycle = last(optax.chain(optax.scale(-effective / (1 - beta)), ball))
    np.testing.assert_allclose(np.sort(cycle), [-1.80245, 0.64653, 2.11592], atol=2e-5)
    np.testing.assert_allclose(last(fgo.triple_momentum(25.0, 1.0)), 0.0, atol=1e-6)


def test_as_the_execution_of_a_run_of_phases():
    mu_x, mu_y, rate, ramp = 0.5, 0.7, 0.02, 3
    sign = optax.scale_by_sign()
    lasting = optax.chain(sign, fgo.scale_by_primal_averaging(mu_x, mu_y))
    tx = fgo.phased(
        [
            fgo.acquisition(rate, transform=sign),
            fgo.Phase("execution", lambda progress: jnp.float32(rate), lasting),
        ],
        [fgo.triggers.after(4)],
        handover_steps=ramp,
    )
    y, x = (np.asarray(part) for part in run(tx, 40))
    np.testing.assert_array_equal(x[:5], y[:5])
    # Once the graft has faded the three sequences hold: their z makes steps of the sign.
    y, x = y[5 + 2 * ramp + 12 :], x[5 + 2 * ramp + 12 :]
    z = (y - mu_y * x) / (1 - mu_y)
    signs = np.sign(np.asarray(gradient(y)))
    np.testing.assert_allclose(np.diff(z, axis=0), -rate * signs[:-1], atol=2e-5)
    np.testing.assert_allclose(x[1:], mu_x * x[:-1] + (1 - mu_x) * z[1:], atol=2e-5)


@pytest.mark.parametrize("order", ["mine first", "mine between"])
def test_in_an_earlier_phase_it_has_no_average(order):
    mine = optax.chain(optax.scale_by_sign(), fgo.scale_by_primal_averaging(0.5, 0.5))
    plain = optax.identity()
    used = {"mine first": (mine, plain, plain), "mine between": (plain, mine, plain)}[order]
    builders = (fgo.acquisition, fgo.reask, fgo.execution)
    phases = [build(0.1, transform=one) for build, one in zip(builders, used, strict=True)]
    state = fgo.phased(phases, [fgo.triggers.after(4)] * 2).init(jnp.ones(2))
    with pytest.raises(ValueError, match="a phase before the last one"):
        fgo.eval_params(state, jnp.ones(2))


def test_around_a_whole_run_on_a_part_of_the_parameters():
    mine = optax.masked(fgo.scale_by_primal_averaging(0.5, 0.5), {"a": True, "b": False})
    phase = fgo.acquisition(1.0, transform=optax.identity())
    tx = optax.chain(fgo.phased([phase], []), mine)
    params = {"a": jnp.full(2, 8.0, jnp.bfloat16), "b": jnp.full(2, 8.0)}
    grads = {"a": jnp.full(2, 4.0, jnp.bfloat16), "b": jnp.full(2, 4.0)}
    updates, state = tx.update(grads, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    shown = fgo.eval_params(state, params)
    np.testing.assert_array_equal(params["a"], 5.0)
    np.testing.assert_array_equal(shown["a"], 6.0)
    assert shown["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(shown["b"], params["b"])


@pytest.mark.parametrize(("mu_x", "mu_y"), [(1.0, 0.5), (-0.1, 0.5), (0.5, 0.0), (0.5, 1.5)])
def test_wrong_weights(mu_x, mu_y):
    with pytest.raises(ValueError, match=r"mu_[xy] must"):
        fgo.scale_by_primal_averaging(mu_x, mu_y)


def test_wrong_constants():
    with pytest.raises(ValueError, match="swap the two"):
        fgo.triple_momentum(1.0, 4.0)
    # At equal curvatures a step of gradient descent is exact.
    tx = fgo.triple_momentum(4.0, 4.0)
    assert tx.update(jnp.float32(8.0), tx.init(jnp.float32(2.0)))[0] == -2.0


@pytest.mark.parametrize("largest", [4.0, 9.0])
def test_constants_may_be_traced(largest):
    def train(smoothness, strong_convexity):
        tx, y = fgo.triple_momentum(smoothness, strong_convexity), jnp.float32(2.0)
        state = tx.init(y)
        for _ in range(3):
            updates, state = tx.update(4.0 * y + jnp.sin(y), state)
            y = y + updates
        # At equal Python numbers there is no average.
        return y, y if largest == 4.0 else fgo.eval_params(state, y), state

    *expected, _ = train(largest, 4.0)
    *found, state = jax.jit(train)(largest, 4.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert jnp.isfinite(fgo.eval_params(state, found[0]))
