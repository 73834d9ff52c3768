"""Rates of layers from the noise of their gradients, against norms by singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.precondition.layer_noise import dual_norm
from fgo_jax.precondition.shared.matrix_view import views
from tests.hlo import copied_always
from tests.problems import mlp_batch, mlp_loss, mlp_params, trees_equal

PARAMS = {"a": jnp.zeros((6, 10)), "b": jnp.zeros((10, 6)), "v": jnp.zeros(5), "w": jnp.zeros(3)}
SIGN = optax.scale_by_sign()


def gradients(count, sizes, seed=0):
    """[count, ...] for each leaf: a mean of 3 and noise of the leaf's own size."""
    rng = np.random.default_rng(seed)
    return {
        name: (3.0 + sizes.get(name, 1.0) * rng.standard_normal((count, *p.shape))).astype("f4")
        for name, p in PARAMS.items()
    }


def run(tx, rows, params=PARAMS):
    """The updates of a sequence of gradients, and the last state."""

    def step(state, grads):
        updates, state = tx.update(grads, state, params)
        return state, updates

    state, updates = jax.jit(lambda state: jax.lax.scan(step, state, rows))(tx.init(params))
    return updates, state


@pytest.mark.parametrize("shape", [(30, 50), (64, 8), (3, 20, 12)])
def test_the_nuclear_norm_is_the_sum_of_singular_values(shape):
    rng = np.random.default_rng(1)
    numbers = None if len(shape) == 2 else optax.contrib.MuonDimensionNumbers((1,), (2,))
    (view,) = views(numbers, jnp.zeros(shape))
    rotations = [np.linalg.qr(rng.standard_normal((n, n)))[0] for n in shape[-2:]]
    few = rng.standard_normal((*shape[:-1], 2)) @ rng.standard_normal((*shape[:-2], 2, shape[-1]))
    wide = rotations[0][:, : min(shape[-2:])] * 0.5 ** np.arange(min(shape[-2:]))
    wide = np.broadcast_to(wide @ rotations[1][: min(shape[-2:])], shape)
    tolerances = {"noise": 1e-3, "of rank two": 1e-3, "of any size": 1e-2}
    for x, kind in zip([rng.standard_normal(shape), few, wide], tolerances, strict=True):
        for scale in (1e-12, 1e6):
            found = dual_norm(jnp.asarray(scale * x, jnp.float32), "nuclear", view)
            exact = np.linalg.svd(scale * x, compute_uv=False).sum(-1)
            exact = exact * (shape[-1] / shape[-2]) ** 0.5
            np.testing.assert_allclose(found.reshape(-1), exact.reshape(-1), rtol=tolerances[kind])


@pytest.mark.parametrize("every", [1, 3])
def test_noise_and_rates_by_their_definition(every):
    alpha, decay, rows = 0.4, 0.7, gradients(10, {"b": 5.0, "w": 0.1})
    tx = fgo.scale_by_layer_noise(SIGN, alpha, every=every, decay=decay)
    updates, state = run(tx, rows)

    firsts = [t for t in range(9) if t % every == 0]
    weights = decay ** np.arange(len(firsts))[::-1]
    squares = {}
    for name, g in rows.items():
        pairs = [(g[t + 1].astype("f8") - g[t]) / 2**0.5 for t in firsts]
        if name in "ab":
            scale = (g.shape[2] / g.shape[1]) ** 0.5
            each = [scale * np.linalg.svd(d, compute_uv=False).sum() for d in pairs]
        else:
            each = [np.abs(d).sum() for d in pairs]
        squares[name] = weights @ np.square(each) / weights.sum()
    for group in ("ab", "vw"):
        mean = np.mean([squares[name] for name in group])
        a = {name: alpha / (alpha**2 + squares[name] / mean) ** 0.5 for name in group}
        for name in group:
            rate = (a[name] / max(a.values())) ** 0.5
            np.testing.assert_allclose(state.layer_noise[name], squares[name] ** 0.5, rtol=2e-3)
            np.testing.assert_allclose(state.layer_rates[name], rate, rtol=2e-3)
            last = np.sign(rows[name][-1]) * np.asarray(state.layer_rates[name])
            np.testing.assert_allclose(updates[name][-1], last, rtol=1e-6)


def test_sixteen_times_the_noise_is_a_quarter_of_the_rate_and_size_is_no_matter():
    rows = gradients(240, {"b": 16.0})
    tx = fgo.scale_by_layer_noise(SIGN, 1e-3, every=2, decay=0.95)
    _, state = run(tx, rows)
    # A root of noise: twenty pairs of sixty entries know it within about two per cent.
    assert float(state.layer_rates["a"]) == 1.0
    assert float(state.layer_rates["b"]) == pytest.approx(0.25 * (10 / 6) ** 0.5, rel=0.05)
    _, small = run(tx, jax.tree.map(lambda g: g * np.float32(2.0**-30), rows))
    assert trees_equal(state.layer_rates, small.layer_rates)


DIRECTIONS = {
    "adam": optax.scale_by_adam,
    "muon": lambda: optax.contrib.scale_by_muon(  # takes nothing but matrices
        weight_dimension_numbers=lambda tree: jax.tree.map(
            lambda leaf: optax.contrib.MuonDimensionNumbers(), tree
        )
    ),
    "fismo": fgo.scale_by_fismo,
    "kronecker": fgo.scale_by_kronecker_fisher,
}


def shown(plain):
    """The same direction, whose state holds the last update too."""
    plain = optax.with_extra_args_support(plain)

    def update(grads, state, params=None, **extra_args):
        updates, inner = plain.update(grads, state[0], params, **extra_args)
        return updates, (inner, updates)

    return optax.GradientTransformationExtraArgs(lambda p: (plain.init(p), p), update)


SLOW = {"fismo", "kronecker"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in DIRECTIONS],
)
def test_a_large_alpha_is_the_direction_bit_for_bit(name):
    # Both in one program: XLA may fuse two of them differently.
    tx = fgo.scale_by_layer_noise(shown(DIRECTIONS[name]()), 1e30, every=1)
    names = "b" if name == "muon" else "bv"
    params, rows = ({k: tree[k] for k in names} for tree in (PARAMS, gradients(3, {"b": 16.0})))
    updates, state = run(tx, rows, params)
    assert trees_equal(jax.tree.map(lambda u: u[-1], updates), state.direction_state[1])
    assert state.layer_noise["b"] > 0.0


def test_the_metric_is_the_directions_with_the_roots_of_the_rates():
    plain = fgo.precondition.Preconditioner(
        SIGN.init, lambda grads, state, params=None, **_: (grads, state), lambda grads, state: grads
    )
    tx = fgo.scale_by_layer_noise(plain, 1e-3, every=1)
    rows = gradients(3, {"b": 16.0})
    one = jax.tree.map(lambda g: jnp.asarray(g[0]), rows)
    assert trees_equal(tx.metric(one, tx.init(PARAMS)), one)
    _, state = run(tx, rows)
    found = tx.metric(one, state)["b"]
    np.testing.assert_allclose(found, one["b"] * state.layer_rates["b"] ** 0.5, rtol=1e-6)
    assert state.layer_rates["b"] < 0.5


def test_each_matrix_of_a_stack_is_a_layer_and_telemetry_tells():
    stack = {"s": jnp.zeros((2, 4, 5)), "v": jnp.zeros(5)}
    numbers = {"s": optax.contrib.MuonDimensionNumbers((1,), (2,)), "v": None}
    tx = fgo.scale_by_layer_noise(SIGN, 1e-3, every=1, weight_dimension_numbers=numbers)
    phase = fgo.acquisition(0.1, transform=tx)
    whole = fgo.phased([phase], [])
    noise = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype("f4")
    noise[:, 1] *= 100.0
    rows = {"s": noise, "v": noise[:, 0, 0]}
    _, state = run(whole, rows, stack)
    told = fgo.telemetry(state)
    assert told["layer_rate/s/0"] == told["layer_rate/v"] == 1.0
    assert 0.05 < told["layer_rate/s/1"] < 0.2
    assert told["layer_noise/s/1"] > 50 * told["layer_noise/s/0"] > 0
    assert "layer_rate/s" not in told
    ensemble = fgo.telemetry(jax.tree.map(lambda x: jnp.stack([x, x, x]), state))
    assert {name: float(number[2]) for name, number in ensemble.items() if "layer" in name} == {
        name: float(number) for name, number in told.items() if "layer" in name
    }


def test_a_gradient_that_is_not_finite_is_no_noise_and_a_still_layer_stops_no_other():
    rows = gradients(12, {})
    rows["a"][:, 0, 0], rows["b"][5, 0, 0] = np.nan, 3e38
    rows["v"][:] = 0.0
    tx = fgo.scale_by_layer_noise(SIGN, every=1)
    _, state = run(tx, rows)
    for name in PARAMS:
        assert np.isfinite(state.layer_noise[name])
    assert state.layer_noise["v"] == 0.0
    assert state.layer_rates["v"] == 1.0
    # The only noisy one of its two is the least noisy one, too.
    assert float(state.layer_rates["w"]) == 1.0
    # A layer that was never measured sets no rate; two of the eleven pairs of b are left out.
    assert state.layer_rates["a"] == state.layer_rates["b"] == 1.0
    np.testing.assert_allclose(state.noise_weight["b"], 1 - 0.9**9, rtol=1e-5)


def test_a_layer_without_noise_sets_no_rate_of_others():
    params = {**PARAMS, "dead": jnp.zeros(4), "empty": jnp.zeros((0, 4)), "key_bias": jnp.zeros(4)}
    rows = gradients(6, {"b": 3.0, "w": 0.1})
    # A true gradient of zero leaves rounding errors.
    tiny = 1e-6 * np.random.default_rng(1).standard_normal((6, 4)).astype("f4")
    still = {"dead": np.zeros((6, 4), "f4"), "empty": np.zeros((6, 0, 4), "f4"), "key_bias": tiny}
    tx = fgo.scale_by_layer_noise(SIGN, every=1, norms="l1")
    _, alone = run(tx, rows)
    _, state = run(tx, {**rows, **still}, params)
    assert all(state.layer_rates[name] == 1.0 for name in still)
    for name in PARAMS:
        np.testing.assert_allclose(state.layer_rates[name], alone.layer_rates[name], rtol=1e-6)
    assert max(float(rate) for rate in jax.tree.leaves(alone.layer_rates)) == 1.0


def test_a_bad_matrix_of_a_stack_stops_no_other():
    stack = {"s": jnp.zeros((3, 4, 5))}
    numbers = optax.contrib.MuonDimensionNumbers(1, 2)
    tx = fgo.scale_by_layer_noise(SIGN, every=2, weight_dimension_numbers=numbers)
    rows = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("f4")
    _, good = run(tx, {"s": rows}, stack)
    rows[0, 0, 0, 0], rows[0, 1, 2, 3] = np.nan, 1e30
    _, state = run(tx, {"s": rows}, stack)
    weights = np.asarray(state.noise_weight["s"]).reshape(-1)
    np.testing.assert_allclose(weights, [0.0, 0.0, 0.1], rtol=1e-5)
    noise, alone = (np.asarray(s.layer_noise["s"]).reshape(-1) for s in (state, good))
    np.testing.assert_allclose(noise, [0.0, 0.0, alone[2]], rtol=1e-5)


def test_norms_by_name_tree_and_function():
    for norms in ("l2", {"a": "l2", "b": "l2", "v": "l2", "w": "l2"}, lambda params: "l2"):
        tx = fgo.scale_by_layer_noise(SIGN, every=1, norms=norms)
        rows = gradients(2, {})
        _, state = run(tx, rows)
        for name, g in rows.items():
            wanted = np.linalg.norm(np.diff(g, axis=0)) / 2**0.5
            np.testing.assert_allclose(state.layer_noise[name], wanted, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer_noise", "primal_averaging"])
def test_no_step_copies_what_is_held_for_later(name):
    transform = {
        "layer_noise": fgo.scale_by_layer_noise(optax.scale_by_adam()),
        "primal_averaging": optax.chain(
            optax.scale_by_adam(b1=0.0), fgo.scale_by_primal_averaging(0.9, 0.9)
        ),
    }[name]
    tx = fgo.phased([fgo.acquisition(1e-3, transform=transform)], [])
    # A tree of 12 kB was copied where the old one is read after the new one is made.
    assert copied_always(tx, mlp_loss, mlp_params(width=256), mlp_batch(0)) < 1000


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"every": 0}, "every"),
        ({"decay": 1.0}, "decay"),
        ({"norms": "l3"}, "norms must be one of"),
        ({"norms": "nuclear"}, "no matrix"),
    ],
)
def test_wrong_arguments(wrong, match):
    with pytest.raises(ValueError, match=match):
        fgo.scale_by_layer_noise(SIGN, **wrong).init(PARAMS)
