"""Probes of small networks against dense curvature in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fgo_jax as fgo
from fgo_jax.linalg.krylov import krylov_space, random_block
from fgo_jax.probes.probe import ProbeInputs

EXAMPLES, CLASSES = 32, 5


def mlp_predict(p, x):
    return jnp.tanh(x.reshape(len(x), -1) @ p["w1"] + p["b1"]) @ p["w2"]


def conv_predict(p, x):
    window = functools.partial(
        jax.lax.conv_general_dilated, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = jnp.tanh(window(x.reshape(-1, 6, 6, 1), p["k1"], (1, 1)))
    hidden = jnp.tanh(window(hidden, p["k2"], (2, 2)))
    return jnp.mean(hidden, axis=(1, 2)) @ p["out"]


def attention_predict(p, x):
    tokens = x @ p["embed"]
    q, k, v = (tokens @ p[name] for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bid,bjd->bij", q, k) / q.shape[-1] ** 0.5)
    tokens = tokens + jnp.einsum("bij,bjd->bid", weights, v)
    tokens = tokens + jnp.tanh(tokens @ p["up"]) @ p["down"]
    return jnp.mean(tokens, axis=1) @ p["out"]


NETWORKS = {
    "mlp": (mlp_predict, {"w1": (36, 24), "b1": (24,), "w2": (24, CLASSES)}),
    "conv": (conv_predict, {"k1": (3, 3, 1, 2), "k2": (3, 3, 2, 4), "out": (4, CLASSES)}),
    "attention": (
        attention_predict,
        {
            "embed": (6, 12), "q": (12, 12), "k": (12, 12), "v": (12, 12),
            "up": (12, 24), "down": (24, 12), "out": (12, CLASSES),
        },
    ),
}  # fmt: skip


@functools.cache
def make(name):
    predict, shapes = NETWORKS[name]
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    params = {
        leaf: jax.random.normal(key, shape) * (1.5 / max(1, np.prod(shape[:-1])) ** 0.5)
        for key, (leaf, shape) in zip(keys, shapes.items(), strict=False)
    }
    return predict, params, jax.random.normal(keys[-1], (EXAMPLES, 6, 6))


@functools.cache
def dense_halves(name):
    """J^T H J / n in float64 of each half of the examples, from whole Jacobians."""
    predict, params, x = make(name)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        flat, unravel = ravel_pytree(params)
        x = jnp.asarray(np.asarray(x), jnp.float64)

        def outputs(v):
            return predict(unravel(v), x)

        both = jax.jit(lambda v: (jax.jacrev(outputs)(v), jax.nn.softmax(outputs(v))))(flat)
    jacobian, p = map(np.asarray, both)
    hessian = p[:, :, None] * np.eye(CLASSES) - p[:, :, None] * p[:, None, :]
    products = np.einsum("ncp,ncd,ndq->npq", jacobian, hessian, jacobian, optimize=True)
    half = EXAMPLES // 2
    return products[:half].mean(0), products[half:].mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_top_ten_eigenvalues(name):
    predict, params, x = make(name)
    truth = np.linalg.eigvalsh(sum(dense_halves(name)) / 2)[::-1][:10]
    matvec = fgo.curvature.ggn(predict)(params, x)
    space = jax.jit(lambda key: krylov_space(matvec, random_block(key, params, 1), 50))(
        jax.random.key(1)
    )
    ritz = np.linalg.eigvalsh(np.asarray(space.matrix, np.float64))[::-1][:10]
    np.testing.assert_allclose(ritz, truth, atol=1e-4 * truth[0])


def repeats(probe, params, x, count):
    def draw(key):
        inputs = ProbeInputs(None, None, params, x, key, jnp.int32(200))
        return probe.read(probe.measure(inputs, probe.init(params)))

    return jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(2), count))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "deflate"), [("mlp", 0), ("conv", 0), ("attention", 0), ("mlp", 4)]
)
def test_hutchinson_is_unbiased_and_its_errors_cover(name, deflate):
    predict, params, x = make(name)
    first, second = dense_halves(name)
    probe = fgo.probes.hutchinson(
        fgo.curvature.ggn(predict), examples=EXAMPLES, smoothing=0.0, deflate=deflate
    )
    count = 150
    read = repeats(probe, params, x, count)
    truth = {"trace": np.trace(first + second) / 2, "trace_square": np.sum(first * second)}
    for signal, value in truth.items():
        got, error = read[signal]
        assert abs(float(got.mean()) - value) < 3 * float(got.std()) / count**0.5, signal
        covered = np.abs(got - value) <= 1.96 * error
        assert covered.mean() >= 0.9, signal


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_lanczos_is_unbiased_and_its_errors_cover(name):
    predict, params, x = make(name)
    eigenvalues = np.linalg.eigvalsh(sum(dense_halves(name)) / 2)
    probe = fgo.probes.lanczos(fgo.curvature.ggn(predict), examples=EXAMPLES)
    count = 60
    got, error = repeats(probe, params, x, count)["trace"]
    truth = eigenvalues.sum()
    assert abs(float(got.mean()) - truth) < 3 * float(got.std()) / count**0.5
    assert (np.abs(got - truth) <= 1.96 * error).mean() >= 0.9


PROBES = {
    "hutchinson": lambda predict: fgo.probes.hutchinson(
        fgo.curvature.ggn(predict), num_samples=16, examples=EXAMPLES
    ),
    "lanczos": lambda predict: fgo.probes.lanczos(
        fgo.curvature.ggn(predict), examples=EXAMPLES, num_starts=4
    ),
    "gram": lambda predict: fgo.probes.gram(
        fgo.probes.example_gradients(
            lambda p, example: -jax.nn.log_softmax(predict(p, example[None])[0])[0]
        ),
        examples=EXAMPLES,
    ),
}


@pytest.mark.parametrize("kind", PROBES)
def test_bfloat16_parameters_give_float32_statistics(kind):
    predict, params, x = make("mlp")
    # The same numbers in both runs: what differs is the arithmetic.
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    wide, wide_x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x))
    probe = PROBES[kind](predict)
    low = jax.tree.map(lambda leaf: leaf[0], repeats(probe, params, x, 1))
    high = jax.tree.map(lambda leaf: leaf[0], repeats(probe, wide, wide_x, 1))
    for name in ("trace", "intrinsic_dimension"):
        assert low[name].value.dtype == jnp.float32
        np.testing.assert_allclose(low[name].value, high[name].value, rtol=0.02)


def test_bfloat16_gradients_give_a_float32_stream():
    keys = jax.random.split(jax.random.key(0), 32)
    probe = fgo.probes.gradient_stream(pairs=16, every=2)
    reads = []
    for dtype in (jnp.bfloat16, jnp.float32):

        def step(state, item, dtype=dtype):
            number, key = item
            rows = {"w": (0.5 + jax.random.normal(key, (200,))).astype(dtype)}
            inputs = ProbeInputs(rows, rows, None, None, jax.random.key(1), number)
            return probe.measure(inputs, state), None

        items = (jnp.arange(32), keys)
        state, _ = jax.jit(lambda s, step=step, items=items: jax.lax.scan(step, s, items))(
            probe.init(None)
        )
        reads.append(probe.read(state))
    for name in ("trace", "intrinsic_dimension"):
        np.testing.assert_allclose(reads[0][name].value, reads[1][name].value, rtol=0.02)
