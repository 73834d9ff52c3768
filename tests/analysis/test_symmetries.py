"""Symmetries of a Flax model, the exact laws that they put on training, and the equilibrium."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

RATE, DECAY, BETA, STEPS = 0.05, 0.01, 0.8, 200


class Net(nn.Module):
    """A joint scale, a scale, a chain of layers that rescale, and logits."""

    @nn.compact
    def __call__(self, x):
        # The variances are far above what the normalisations add to them.
        norm = {"epsilon": 1e-10, "param_dtype": x.dtype}
        dense = {"param_dtype": x.dtype}
        x = nn.LayerNorm(use_scale=False, use_bias=False, **norm)(nn.Dense(12, **dense)(x))
        x = nn.Dense(9, use_bias=False, **dense)(nn.relu(x))
        x = nn.BatchNorm(use_running_average=False, **norm)(x)
        x = nn.relu(nn.Dense(10, use_bias=False, **dense)(x))
        return nn.Dense(4, **dense)(x)


def loss(params, batch):
    x, y = batch
    logits, _ = Net().apply({"params": params}, x, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def problem(dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 6)).astype(dtype)
    shapes = jax.eval_shape(lambda: Net().init(jax.random.key(0), x)["params"])

    def drawn(path, leaf):
        size = 0.3 if path[-1].key == "bias" else leaf.shape[0] ** -0.5
        return (size * rng.standard_normal(leaf.shape)).astype(dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes), (x, np.arange(32) % 4)


JOINT = ("Dense_0/bias", "Dense_0/kernel")
CHAIN = (("BatchNorm_0/bias", "BatchNorm_0/scale"), ("Dense_2/kernel",), ("Dense_3/kernel",))


@pytest.mark.parametrize("biases", [1.0, 0.0])
def test_what_the_layers_make_redundant_is_found_and_nothing_else(biases):
    params, batch = problem()
    # At zero, as they are when training begins, all biases would look scale-invariant.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: x * np.float32(biases if path[-1].key == "bias" else 1), params
    )
    found = fgo.analysis.symmetries(loss, params, batch)
    assert found.scale == (("Dense_1/kernel",), JOINT)
    # The mean over features goes in a layer norm, and that over classes in a softmax.
    assert found.translation == ("Dense_0/bias", "Dense_0/kernel", "Dense_3/bias", "Dense_3/kernel")
    assert found.rescale == (CHAIN,)
    assert found.still == ()
    assert found.residuals["Dense_1/kernel"] < 1e-5
    assert found.residuals["Dense_3/kernel"] > 0.01


def test_a_bias_before_a_batch_norm_has_no_gradient():
    def centred(params, batch):
        x = batch @ params["w"] + params["b"]
        return jnp.mean(jnp.sin(jax.nn.standardize(x, axis=0, epsilon=1e-9)))

    keys = jax.random.split(jax.random.key(0), 2)
    params = {"w": jax.random.normal(keys[0], (4, 5)), "b": jnp.zeros(5)}
    found = fgo.analysis.symmetries(centred, params, jax.random.normal(keys[1], (16, 4)))
    assert found.still == ("b",)
    assert found.scale == (("w",),)
    with pytest.raises(ValueError, match="not finite"):
        fgo.analysis.symmetries(centred, params, jnp.full((16, 4), jnp.nan))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_a_small_gradient_that_rounding_does_not_change_is_no_still_one(scale):
    def mixed(params, x):
        return scale * (1e6 * jnp.sum(x * params["w"] ** 2) + params["v"] ** 3)

    params = {"w": jnp.ones(3), "v": jnp.ones(())}
    assert fgo.analysis.symmetries(mixed, params, jnp.arange(3.0)).still == ()

    def deep(params, x):
        for name in sorted(params):
            x = jax.nn.sigmoid(x @ params[name])
        return scale * jnp.sum(x**2, -1)

    keys = jax.random.split(jax.random.key(0), 14)
    layers = {f"l{i:02d}": 0.5 * jax.random.normal(key, (8, 8)) for i, key in enumerate(keys)}
    found = fgo.analysis.symmetries(deep, layers, jax.random.normal(keys[0], (32, 8)))
    assert found.still == ()


@pytest.fixture(scope="module")
def trained():
    """Parameters before, velocities and gradients after each step, in float64."""
    with jax.enable_x64(True):
        params, batch = problem(np.float64)

        def step(carry, _):
            theta, v = carry
            g = jax.grad(lambda p: jnp.mean(loss(p, batch)))(theta)
            v = jax.tree.map(lambda v, g, p: BETA * v + g + DECAY * p, v, g, theta)
            new = jax.tree.map(lambda p, v: p - RATE * v, theta, v)
            return (new, v), (theta, v)

        start = (params, jax.tree.map(jnp.zeros_like, params))
        _, path = jax.jit(lambda c: jax.lax.scan(step, c, None, STEPS))(start)
        return jax.device_get(path)


def flat(tree, paths):
    """[steps, entries] of some leaves together."""
    leaves = [tree[module][name] for module, name in (path.split("/") for path in paths)]
    return np.concatenate([leaf.reshape(STEPS, -1) for leaf in leaves], 1)


def second_order(theta, v):
    """(left, right) of the law of ||theta||^2, for steps from the third parameters on."""
    r, energy = (theta**2).sum(1), (v**2).sum(1)
    d = np.diff(r)
    right = BETA * d[:-1] - 2 * RATE * DECAY * r[1:-1]
    return d[1:], right + RATE**2 * (energy[1:-1] + BETA * energy[:-2])


def test_scale_and_rescale_obey_their_exact_laws_under_momentum_and_decay(trained):
    for part in (("Dense_1/kernel",), JOINT):
        left, right = second_order(*(flat(tree, part) for tree in trained))
        assert np.abs(left - right).max() < 1e-5 * np.abs(left).max()
    sides = [second_order(*(flat(tree, part) for tree in trained)) for part in CHAIN]
    for (left, right), (other_left, other_right) in itertools.pairwise(sides):
        gap = (left - other_left) - (right - other_right)
        assert np.abs(gap).max() < 1e-5 * np.abs(left).max()
        # Each by itself has no such law.
        assert np.abs(left - right).max() > 1e-2 * np.abs(left).max()


def test_translations_obey_theirs(trained):
    theta, _ = trained
    for path in ("Dense_0/bias", "Dense_0/kernel", "Dense_3/bias", "Dense_3/kernel"):
        module, name = path.split("/")
        s = theta[module][name].sum(-1)
        steps = np.diff(s, axis=0)
        right = BETA * steps[:-1] - RATE * DECAY * s[1:-1]
        assert np.abs(steps[1:] - right).max() < 1e-5 * np.abs(steps).max()


@pytest.fixture(scope="module")
def at_rest():
    """Telemetry of SGD on a scale-invariant part whose gradients are noise, from equilibrium."""
    rate, decay, beta, size = 0.1, 5e-3, 0.9, 500
    found = fgo.analysis.Symmetries((("w",),), (), (), (), {})
    length = (rate / (decay * (1 - beta) * (2 - rate * decay / (1 + beta)))) ** 0.25

    def step(carry, key):
        theta, v = carry
        square = jnp.vdot(theta, theta)
        noise = jax.random.normal(key, (size,)) / size**0.5
        # The gradient of a loss of theta / |theta|, so that |theta|^2 |g|^2 is about 1.
        g = (noise - jnp.vdot(theta, noise) / square * theta) / jnp.sqrt(square)
        v = beta * v + g + decay * theta
        told = fgo.analysis.symmetry_telemetry(
            found, {"w": theta}, {"w": -rate * v}, {"w": g},
            learning_rate=rate, weight_decay=decay, momentum=beta,
        )  # fmt: skip
        return (theta - rate * v, v), told

    start = jax.random.normal(jax.random.key(1), (size,))
    start = length * start / jnp.linalg.norm(start)
    scan = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[1])
    told = scan((start, jnp.zeros(size)), jax.random.split(jax.random.key(2), 6000))
    return {name.removesuffix("/w"): np.asarray(x[2000:]) for name, x in told.items()}


def test_at_equilibrium_the_part_turns_as_predicted_and_keeps_its_length(at_rest):
    assert at_rest["equilibrium_rotation"][0] == pytest.approx((2 * 5e-4 / 1.9) ** 0.5, rel=1e-5)
    assert at_rest["rotation"].mean() == pytest.approx(at_rest["equilibrium_rotation"][0], rel=0.02)
    assert at_rest["pull"].mean() == pytest.approx(1.0, rel=0.03)
    np.testing.assert_allclose(at_rest["effective_rate"], 0.1 / at_rest["norm"] ** 2, rtol=1e-5)


def test_inward_and_outward_are_the_change_of_the_squared_length(at_rest):
    squares = at_rest["norm"].astype("f8") ** 2
    change = (at_rest["inward"] + at_rest["outward"])[:-1]
    # A squared length of ten is rounded to a millionth, in each of the two.
    np.testing.assert_allclose(np.diff(squares), change, atol=1e-5)
    assert np.abs(change).max() > 1e-2


def test_without_decay_there_is_no_prediction():
    found = fgo.analysis.Symmetries((("w",),), (), (), (), {})
    w = {"w": jnp.ones(3)}
    told = fgo.analysis.symmetry_telemetry(found, w, w, w, learning_rate=0.1)
    assert np.isnan(told["pull/w"])
    assert np.isnan(told["equilibrium_rotation/w"])
    assert told["rotation/w"] == 0
    with pytest.raises(KeyError):
        fgo.analysis.symmetry_telemetry(found, {}, w, w, learning_rate=0.1)


def test_gradients_above_a_hundred_in_float16_are_finite():
    def loss(params, batch):
        return 400 * batch.astype(params.dtype) * params

    assert fgo.analysis.symmetries(loss, jnp.ones(4, jnp.float16), jnp.ones((3, 4))).still == ()
