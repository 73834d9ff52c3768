"""Every operator against a dense float64 matrix made from the Jacobian by its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from fgo_jax import curvature
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part

KEY = jax.random.key(11)


def random_params(seed, **shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) / max(np.prod(shape[:-1]), 1) ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def mlp(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    return jnp.tanh(hidden @ params["w2"]) @ params["w3"] + params["b3"]


def conv(params, batch):
    image = batch["x"].astype(params["k"].dtype)
    dimensions = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(
        image, params["k"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    hidden = jax.nn.gelu(hidden + params["b"])
    hidden = hidden.reshape(hidden.shape[0], 3, 2, 3, 2, -1).mean((2, 4))
    return jnp.tensordot(hidden, params["w"], 3)


def attention(params, batch):
    x = params["embed"][batch["x"]] + params["position"]
    normal = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-3)
    query, key, value = jnp.moveaxis(jnp.tensordot(normal, params["qkv"], 1), -2, 0)
    scores = jnp.einsum("bqd,bkd->bqk", query, key) / query.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    x = x + jax.nn.softmax(jnp.where(causal, scores, -1e9)) @ value
    return (x + jax.nn.gelu(x @ params["up"]) @ params["down"]) @ params["out"]


@functools.cache
def problem(name):
    """A model, its parameters (237 to 784), and a batch of 4 or 6 with labels and weights."""
    keys = jax.random.split(jax.random.key(5), 3)
    if name == "mlp":
        params = random_params(0, w1=(5, 12), b1=(12,), w2=(12, 10), w3=(10, 4), b3=(4,))
        predict, x, rows, classes = mlp, jax.random.normal(keys[0], (6, 5)), (6,), 4
    elif name == "conv":
        params = random_params(1, k=(3, 3, 2, 6), b=(6,), w=(3, 3, 6, 5))
        predict, x, rows, classes = conv, jax.random.normal(keys[0], (4, 6, 6, 2)), (4,), 5
    else:
        shapes = {"embed": (7, 8), "position": (5, 8), "qkv": (8, 3, 8)}
        params = random_params(2, **shapes, up=(8, 16), down=(16, 8), out=(8, 7))
        x = jax.random.randint(keys[0], (4, 5), 0, 7)
        predict, rows, classes = attention, (4, 5), 7
    batch = {
        "x": x,
        "label": jax.random.randint(keys[1], rows, 0, classes),
        "kept": jax.random.uniform(keys[2], rows) * (jnp.arange(rows[-1]) > 0),
    }
    return predict, params, batch


@functools.cache
def jacobian(name):
    """float64 Jacobian [rows, C, P] and softmax probabilities [rows, C] of a problem."""
    predict, params, batch = problem(name)
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(optax.tree.cast(params, jnp.float64))
        wide = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf, batch
        )
        outputs = jax.jit(lambda p: predict(unravel(p), wide))
        z = np.asarray(outputs(flat))
        jacobian = np.asarray(jax.jit(jax.jacrev(outputs))(flat))
    exp = np.exp(z - z.max(-1, keepdims=True))
    classes = z.shape[-1]
    p = (exp / exp.sum(-1, keepdims=True)).reshape(-1, classes)
    return jacobian.reshape(-1, classes, flat.size), p


@functools.cache
def hessian_in_float64(name, weighted):
    predict, params, batch = problem(name)
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(optax.tree.cast(params, jnp.float64))
        x = batch["x"].astype(jnp.float64) if batch["x"].dtype == jnp.float32 else batch["x"]
        w = np.asarray(batch["kept"], np.float64) if weighted else np.ones(batch["kept"].shape)

        def loss(p):
            log_p = jax.nn.log_softmax(predict(unravel(p), {"x": x}))
            picked = jnp.take_along_axis(log_p, batch["label"][..., None], -1)[..., 0]
            return -jnp.sum(w * picked) / np.sum(w)

        return np.asarray(jax.jit(jax.hessian(loss))(flat))


def dense(kind, name, weighted=False):
    """sum_i w_i J_i^T H_i J_i / sum_i w_i with the H_i of each operator."""
    if kind == "hessian":
        return hessian_in_float64(name, weighted)
    predict, params, batch = problem(name)
    jac, p = jacobian(name)
    if kind == "ggn":
        h = p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]
    else:
        labels = batch["label"]
        if kind == "sampled_fisher":
            outputs = predict(params, batch)
            labels = losses.draw_labels("softmax_cross_entropy", outputs, KEY, Part().rows)
        residual = p - np.eye(p.shape[1])[np.asarray(labels).reshape(-1)]
        h = residual[:, :, None] * residual[:, None, :]
    w = np.asarray(batch["kept"], np.float64).reshape(-1) if weighted else np.ones(len(p))
    h = h * (w / w.sum())[:, None, None]
    return np.einsum("rci,rcd,rdj->ij", jac, h, jac, optimize=True)


def make(kind, predict, **options):
    if kind == "ggn":
        return curvature.ggn(predict, **options)
    if kind == "sampled_fisher":
        return functools.partial(curvature.sampled_fisher(predict, **options), key=KEY)
    return getattr(curvature, kind)(curvature.example_losses(predict), **options)


KINDS = ("ggn", "sampled_fisher", "empirical_fisher", "hessian")


def check(operator, name, expected, select=None):
    """Three products and their frictions, relative to their own size."""
    _, params, batch = problem(name)
    flat, unravel = ravel_pytree(params)
    vectors = jax.random.normal(jax.random.key(3), (3, flat.size))

    @jax.jit
    def run(params, batch):
        matvec = operator(params, batch)
        directions = jax.vmap(unravel)(vectors)
        products = jax.lax.map(lambda v: ravel_pytree(matvec(v))[0], directions)
        return products, curvature.friction(matvec, directions, stacked=True)

    products, frictions = run(params, batch)
    assert products.dtype == frictions.dtype == jnp.float32
    v = np.asarray(vectors, np.float64)
    truth = v @ expected
    errors = np.linalg.norm(products - truth, axis=1) / np.linalg.norm(truth, axis=1)
    assert errors.max() < 1e-5
    # A Hessian's friction may cancel: relative to the lengths that make it.
    scale = np.linalg.norm(v, axis=1) * np.linalg.norm(truth, axis=1)
    assert np.all(np.abs(frictions - np.sum(truth * v, axis=1)) < 1e-5 * scale)


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_its_dense_definition(kind, name):
    check(make(kind, problem(name)[0]), name, dense(kind, name))


@pytest.mark.parametrize("name", ["conv", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_and_chunked_is_the_dense_weighted_mean(kind, name):
    operator = make(kind, problem(name)[0], weights="kept", chunk_size=2)
    check(operator, name, dense(kind, name, weighted=True))


def chosen(params, mask):
    flags = jax.tree.map(lambda leaf, flag: jnp.full(leaf.shape, flag), params, mask)
    return np.asarray(ravel_pytree(flags)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_masked_is_the_dense_sub_block(kind):
    predict, params, _ = problem("attention")
    mask = {name: name in ("qkv", "out") for name in params}
    block = np.outer(chosen(params, mask), chosen(params, mask))
    expected = np.where(block, dense(kind, "attention"), 0.0)
    check(make(kind, predict, mask=mask), "attention", expected)
    # A function of the parameters says the same; and the options compose.
    operator = make(
        kind, predict, mask=lambda p: mask, weights=lambda b: b["kept"], chunk_size=1
    )
    check(operator, "attention", np.where(block, dense(kind, "attention", weighted=True), 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_but_the_order_of_sums(kind):
    predict, params, batch = problem("mlp")

    def product(chunk_size):
        run = jax.jit(lambda v: make(kind, predict, chunk_size=chunk_size)(params, batch)(v))
        return ravel_pytree(run(params))[0]

    whole = product(None)
    for chunk_size in (1, 3, 6):
        np.testing.assert_allclose(product(chunk_size), whole, atol=2e-6 * np.abs(whole).max())


def test_what_a_mask_leaves_out_is_not_linearised():
    """Integers have no tangents; a mask keeps them out of the way."""
    predict, params, batch = problem("mlp")
    params = {**params, "count": jnp.int32(3)}
    mask = {name: name != "count" for name in params}
    product = curvature.ggn(predict, mask=mask)(params, batch)(params)
    assert product["count"].dtype == jnp.float32
    assert float(product["count"]) == 0.0


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_parameters_keep_the_statistics(kind, name):
    predict, params, batch = problem(name)
    size = ravel_pytree(params)[0].size
    unravel = ravel_pytree(params)[1]
    signs = jax.random.rademacher(jax.random.key(9), (32, size), jnp.float32)

    @jax.jit
    def statistics(params, batch):
        matvec = make(kind, predict)(params, batch)
        directions = jax.vmap(unravel)(signs)
        product = matvec(unravel(signs[0]))
        trace = jnp.mean(curvature.friction(matvec, directions, stacked=True))
        return ravel_pytree(product)[0], trace

    product, trace = statistics(params, batch)
    half = {k: v.astype(jnp.bfloat16) if v.dtype == jnp.float32 else v for k, v in batch.items()}
    rough_product, rough_trace = statistics(optax.tree.cast(params, jnp.bfloat16), half)
    assert rough_product.dtype == rough_trace.dtype == jnp.float32
    print(kind,name,float(jnp.linalg.norm(rough_product-product)/jnp.linalg.norm(product)), abs(float(rough_trace / trace) - 1.0))
    assert abs(float(rough_trace / trace) - 1.0) < 0.02
