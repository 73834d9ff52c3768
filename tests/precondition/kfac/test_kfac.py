"""scale_by_kfac against a float64 reference, the exact natural gradient and its own identities."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.curvature import losses

FACTORS_EVERY, REFRESH_EVERY, BURN_IN, DECAY, B1 = 2, 4, 3, 0.8, 0.7


class Net(nn.Module):
    """Two layers, a normalisation between them, no bias in the last."""

    @nn.compact
    def __call__(self, x):
        x = nn.RMSNorm(epsilon=1e-6)(jnp.tanh(nn.Dense(4)(x)))
        return nn.Dense(3, use_bias=False)(x)


def predict(params, batch):
    return Net().apply({"params": params}, batch)


init = functools.cache(lambda: jax.jit(Net().init)(jax.random.key(1), jnp.zeros((1, 5)))["params"])


@functools.cache
def problem(seed=0, examples=12):
    x = jax.random.normal(jax.random.key(seed), (examples, 5)) * jnp.arange(1.0, 6.0)
    return init(), x


@jax.jit
def drawn_labels(params, x, key):
    count = lambda n: jnp.arange(n, dtype=jnp.int32)  # noqa: E731
    return losses.draw_labels("softmax_cross_entropy", predict(params, x), key, count)


def dense_statistics(params, x, labels):
    """The moments of `Net` written out, example by example, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    w, b, scale = p["Dense_0"]["kernel"], p["Dense_0"]["bias"], p["RMSNorm_0"]["scale"]
    moments = {name: 0.0 for name in ("A0", "G0", "A1", "G1", "scale")}
    for row, label in zip(np.asarray(x, np.float64), np.asarray(labels), strict=True):
        hidden = np.tanh(row @ w + b)
        rms = np.sqrt(np.mean(hidden**2) + 1e-6)
        unit = hidden / rms
        out = (scale * unit) @ p["Dense_1"]["kernel"]
        prob = np.exp(out - out.max())
        g1 = prob / prob.sum() - np.eye(3)[label]
        above = p["Dense_1"]["kernel"] @ g1
        below = scale * above
        g0 = (below - unit * np.mean(unit * below)) / rms * (1 - hidden**2)
        a0 = np.append(row, 1.0)
        moments["A0"] += np.outer(a0, a0) / len(x)
        moments["G0"] += np.outer(g0, g0) / len(x)
        moments["A1"] += np.outer(scale * unit, scale * unit) / len(x)
        moments["G1"] += np.outer(g1, g1) / len(x)
        moments["scale"] += (unit * above) ** 2 / len(x)
    return moments


def damped_inverses(a, g, damping):
    ta, tg = np.trace(a) / len(a), np.trace(g) / len(g)
    pi = np.sqrt(ta / tg)
    level = np.sqrt(damping * ta * tg)
    return (
        np.linalg.inv(a + pi * level * np.eye(len(a))),
        np.linalg.inv(g + level / pi * np.eye(len(g))),
    )


def reference(params, batches, grads, damping, constraint):
    """Every step of the algorithm for `Net`, with the labels that the transform draws."""
    moving, inverses, out, momentum, estimates = None, None, [], None, 0
    key = jax.random.key(0, impl="threefry2x32")
    for step, (x, g) in enumerate(zip(batches, grads, strict=True)):
        if step < BURN_IN or step % FACTORS_EVERY == 0:
            labels = drawn_labels(params, x, jax.random.fold_in(key, step))
            new = dense_statistics(params, x, labels)
            estimates += 1
            share = (1 - DECAY) / (1 - DECAY**estimates)
            moving = (
                new
                if moving is None
                else {k: (1 - share) * moving[k] + share * new[k] for k in new}
            )
        if step < BURN_IN or step % REFRESH_EVERY == 0:
            inverses = (
                *damped_inverses(moving["A0"], moving["G0"], damping),
                *damped_inverses(moving["A1"], moving["G1"], damping),
                1 / (moving["scale"] + damping * moving["scale"].mean()),
            )
        g = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), g)
        a0, g0, a1, g1, d = inverses
        first = a0 @ np.vstack([g["Dense_0"]["kernel"], g["Dense_0"]["bias"]]) @ g0
        u = {
            "Dense_0": {"kernel": first[:-1], "bias": first[-1]},
            "Dense_1": {"kernel": a1 @ g["Dense_1"]["kernel"] @ g1},
            "RMSNorm_0": {"scale": d * g["RMSNorm_0"]["scale"]},
        }
        square = sum(np.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (u, g)), strict=True))
        scale = min(1.0, np.sqrt(constraint / square))
        u = jax.tree.map(lambda leaf, s=scale: s * leaf, u)
        momentum = (
            jax.tree.map(lambda leaf: (1 - B1) * leaf, u)
            if momentum is None
            else jax.tree.map(lambda m, leaf: B1 * m + (1 - B1) * leaf, momentum, u)
        )
        out.append(jax.tree.map(lambda m, t=step: m / (1 - B1 ** (t + 1)), momentum))
    return out


def make(**kwargs):
    return fgo.scale_by_kfac(
        predict,
        factors_every=FACTORS_EVERY,
        refresh_every=REFRESH_EVERY,
        burn_in=BURN_IN,
        factor_decay=DECAY,
        b1=B1,
        **kwargs,
    )


@pytest.mark.parametrize("constraint", [0.3, 1e6])
def test_equals_the_dense_reference_over_three_refresh_periods(constraint):
    params, _ = problem()
    steps = BURN_IN + 3 * REFRESH_EVERY + 2
    batches = [problem(seed)[1] for seed in range(steps)]
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        for _ in range(steps)
    ]
    tx = make(damping=0.02, norm_constraint=constraint)
    state, update = tx.init(params), jax.jit(tx.update)
    for step, expected in enumerate(reference(params, batches, grads, 0.02, constraint)):
        updates, state = update(grads[step], state, params, batch=batches[step])
        for ours, theirs in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
            # Damped condition numbers of about 1e2 on each side, times the rounding of float32.
            np.testing.assert_allclose(
                ours, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=str(step)
            )


class Linear(nn.Module):
    features: tuple

    @nn.compact
    def __call__(self, x):
        for n in self.features:
            x = nn.Dense(n)(x)
        return x


def linear_problem(features, examples=32):
    model = Linear(features)
    x = jax.random.normal(jax.random.key(0), (examples, 4)) @ jnp.diag(
        jnp.asarray([1.0, 3, 0.3, 2])
    )
    params = model.init(jax.random.key(1), x)["params"]
    return params, x, lambda p, batch: model.apply({"params": p}, batch)


def test_factors_of_a_linear_network_are_exact():
    """For unit Gaussian labels G is W W^T of the layers above, whatever the example."""
    params, x, fn = linear_problem((3, 2))
    tx = fgo.scale_by_kfac(fn, "squared_error", burn_in=0, factors_every=1, factor_decay=0.999)
    state = tx.init(params)
    draws = 200

    def step(state, _):
        return tx.update(params, state, params, batch=x)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=draws))(state)
    homogeneous = np.hstack([x, np.ones((len(x), 1))])
    hidden = np.hstack([np.asarray(fn_hidden(params, x)), np.ones((len(x), 1))])
    w = np.asarray(params["Dense_1"]["kernel"])
    (a0, g0), (a1, g1) = state.factors[0][0], state.factors[1][0]
    np.testing.assert_allclose(a0, homogeneous.T @ homogeneous / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a1, hidden.T @ hidden / len(x), rtol=1e-4, atol=1e-5)
    # An entry of a mean of n = 32 * 200 outer products has a standard deviation of at most
    # sqrt(2 G_ii G_jj / n); five of them.
    for got, exact in ((g0, w @ w.T), (g1, np.eye(2))):
        budget = 5 * np.sqrt(2 / (len(x) * draws)) * np.diag(exact).max()
        np.testing.assert_allclose(got, exact, atol=budget)


def fn_hidden(params, x):
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def test_a_linear_gaussian_layer_gets_the_exact_natural_gradient():
    """F = A kron I, so one step of rate one from anywhere ends in the least-squares solution."""
    params, x, fn = linear_problem((2,))
    y = jnp.tanh(x[:, :2]) + 3.0
    tx = fgo.scale_by_kfac(
        fn,
        "squared_error",
        damping=0.0,
        b1=None,
        norm_constraint=None,
        factor_decay=0.99,
        burn_in=0,
    )
    state = tx.init(params)

    def loss(p):
        return 0.5 * jnp.mean(jnp.sum((fn(p, x) - y) ** 2, -1))

    grads = jax.grad(loss)(params)
    exact = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), np.asarray(y), rcond=None)[0]
    # With the exact G = I in place of its estimate from drawn labels.
    update = jax.jit(tx.update)
    _, state = update(grads, state, params, batch=x)
    state = state._replace(
        factors=(((state.factors[0][0][0], jnp.eye(2)),),), kfac_step=jnp.int32(10)
    )
    no_estimate = jax.jit(
        fgo.scale_by_kfac(
            fn, "squared_error", damping=0.0, b1=None, norm_constraint=None,
            factors_every=1000, refresh_every=10, burn_in=0,
        ).update
    )  # fmt: skip
    updates, _ = no_estimate(grads, state, params, batch=x)
    moved = optax.apply_updates(params, jax.tree.map(jnp.negative, updates))["Dense_0"]
    np.testing.assert_allclose(moved["kernel"], exact[:-1], atol=1e-4)
    np.testing.assert_allclose(moved["bias"], exact[-1], atol=1e-4)


def test_applying_the_metric_twice_is_the_update_without_momentum():
    params, x = problem()
    tx = fgo.scale_by_kfac(predict, b1=None, norm_constraint=None)
    state = tx.init(params)
    jax.tree.map(np.testing.assert_array_equal, tx.metric(params, state), params)
    updates, state = jax.jit(tx.update)(params, state, params, batch=x)
    twice = tx.metric(tx.metric(params, state), state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), twice, updates
    )


def test_the_norm_constraint_holds_and_only_shortens():
    params, x = problem()
    free = fgo.scale_by_kfac(predict, b1=None, norm_constraint=None)
    update = jax.jit(free.update)(params, free.init(params), params, batch=x)[0]
    square = sum(
        jnp.vdot(u, g) for u, g in zip(*map(jax.tree.leaves, (update, params)), strict=True)
    )
    for constraint in (0.25 * float(square), 4.0 * float(square)):
        tx = fgo.scale_by_kfac(predict, b1=None, norm_constraint=constraint)
        short = jax.jit(tx.update)(params, tx.init(params), params, batch=x)[0]
        scale = min(1.0, (constraint / float(square)) ** 0.5)
        jax.tree.map(
            lambda a, b, s=scale: np.testing.assert_allclose(a, s * b, rtol=1e-4, atol=1e-6),
            short, update,
        )  # fmt: skip


def test_the_mean_over_weights_is_the_mean_over_what_they_keep():
    params, x = problem()

    def fn(p, batch):
        return predict(p, batch["x"])

    def factors(batch, weights):
        tx = fgo.scale_by_kfac(fn, weights=weights)
        return jax.jit(tx.update)(params, tx.init(params), params, batch=batch)[1]

    keep = jnp.arange(len(x)) < 8
    masked = factors({"x": x, "w": keep.astype(jnp.float32)}, "w")
    short = factors({"x": x[:8]}, None)
    # The labels of a row depend on its number alone. A is over all inputs, padding as well.
    for a, b in zip(masked.factors[:2], short.factors[:2], strict=True):
        np.testing.assert_allclose(a[0][1], b[0][1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked.factors[2], short.factors[2], rtol=1e-5, atol=1e-6)


def test_a_moving_average_that_is_off_costs_nothing():
    params, _ = problem()
    for b1 in (None, 0.0):
        assert fgo.scale_by_kfac(predict, b1=b1).init(params).direction == ()
