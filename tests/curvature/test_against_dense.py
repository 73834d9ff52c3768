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


def flatten(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def unflatten(vector, like):
    leaves, treedef = jax.tree.flatten(like)
    parts = np.split(vector, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return treedef.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(seed, **shapes):
    return {
        name: jnp.asarray(normal([seed, i], *shape) / max(np.prod(shape[:-1]), 1) ** 0.5)
        for i, (name, shape) in enumerate(shapes.items())
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
    x = jax.nn.one_hot(batch["x"], 7, dtype=params["embed"].dtype) @ params["embed"]
    x = x + params["position"]
    scores = (x @ params["query"]) @ jnp.swapaxes(x @ params["key"], -1, -2)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    x = x + jax.nn.softmax(jnp.where(causal, scores, -1e9)) @ (x @ params["value"])
    return jnp.tanh(x @ params["up"]) @ params["out"]


@functools.cache
def problem(name):
    """A model, its 236 to 528 parameters, and a batch with labels and weights."""
    rng = np.random.default_rng(5)
    if name == "mlp":
        params = random_params(0, w1=(5, 12), b1=(12,), w2=(12, 10), w3=(10, 4), b3=(4,))
        predict, x, rows, classes = mlp, normal(7, 4, 3, 5), (4, 3), 4
    elif name == "conv":
        params = random_params(1, k=(3, 3, 2, 6), b=(6,), w=(3, 3, 6, 5))
        predict, x, rows, classes = conv, normal(8, 6, 6, 6, 2), (6,), 5
    else:
        square = dict.fromkeys(("query", "key", "value"), (8, 8))
        params = random_params(2, embed=(7, 8), position=(5, 8), **square, up=(8, 16), out=(16, 7))
        x = rng.integers(0, 7, (4, 5))
        predict, rows, classes = attention, (4, 5), 7
    batch = {
        "x": x,
        "label": rng.integers(0, classes, rows, np.int32),
        "kept": rng.uniform(size=rows).astype(np.float32) * (np.arange(rows[-1]) > 0),
    }
    return predict, params, jax.tree.map(jnp.asarray, batch)


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


@functools.cache
def compiled(kind, name):
    operator = make(kind, problem(name)[0])
    return jax.jit(lambda params, batch, v: operator(params, batch)(v))


def check(product, name, expected):
    """Three products and their frictions, relative to their own size."""
    _, params, batch = problem(name)
    for v in normal(3, 3, len(expected)):
        matvec = functools.partial(product, params, batch)
        actual = flatten(matvec(unflatten(v, params)))
        friction = curvature.friction(matvec, unflatten(v, params))
        assert actual.dtype == friction.dtype == jnp.float32
        truth = expected @ v.astype(np.float64)
        assert np.linalg.norm(actual - truth) < 1e-5 * np.linalg.norm(truth)
        # A Hessian's friction may cancel, hence the lengths that make it.
        size = np.linalg.norm(v) * np.linalg.norm(truth)
        assert abs(friction - truth @ v.astype(np.float64)) < 1e-5 * size


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_its_dense_definition(kind, name):
    check(compiled(kind, name), name, dense(kind, name))


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_and_chunked_is_the_dense_weighted_mean(kind):
    operator = make(kind, mlp, weights="kept", chunk_size=2)
    product = jax.jit(lambda params, batch, v: operator(params, batch)(v))
    check(product, "mlp", dense(kind, "mlp", weighted=True))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_is_the_dense_sub_block(kind):
    params = problem("mlp")[1]
    mask = {name: name in ("w1", "b3") for name in params}
    flags = flatten(jax.tree.map(lambda leaf, flag: np.full(leaf.shape, flag), params, mask))
    operator = make(kind, mlp, mask=mask)
    product = jax.jit(lambda params, batch, v: operator(params, batch)(v))
    check(product, "mlp", np.where(np.outer(flags, flags), dense(kind, "mlp"), 0.0))


def test_options_compose_and_a_mask_may_be_a_function():
    """Weights as a function; the matrices of the model and not its vectors."""
    params = problem("mlp")[1]
    operator = curvature.ggn(
        mlp,
        weights=lambda batch: batch["kept"],
        mask=lambda p: jax.tree.map(lambda leaf: leaf.ndim > 1, p),
        chunk_size=1,
    )
    flags = flatten(jax.tree.map(lambda leaf: np.full(leaf.shape, leaf.ndim > 1), params))
    expected = np.where(np.outer(flags, flags), dense("ggn", "mlp", weighted=True), 0.0)
    product = jax.jit(lambda params, batch, v: operator(params, batch)(v))
    check(product, "mlp", expected)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing_but_the_order_of_sums(kind):
    _, params, batch = problem("mlp")
    whole = flatten(compiled(kind, "mlp")(params, batch, params))
    operator = make(kind, mlp, chunk_size=1)
    chunked = jax.jit(lambda v: operator(params, batch)(v))(params)
    np.testing.assert_allclose(flatten(chunked), whole, atol=2e-6 * np.abs(whole).max())


def test_what_a_mask_leaves_out_is_not_linearised():
    """Integers have no tangents; a mask keeps them out of the way."""
    _, params, batch = problem("mlp")
    params = {**params, "count": jnp.int32(3)}
    operator = curvature.ggn(mlp, mask={name: name != "count" for name in params})
    product = jax.jit(lambda v: operator(params, batch)(v))(params)
    assert product["count"].dtype == jnp.float32
    assert float(product["count"]) == 0.0


def test_stacked_directions_have_the_friction_of_each():
    _, params, batch = problem("mlp")
    matvec = functools.partial(compiled("ggn", "mlp"), params, batch)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, jnp.ones_like(leaf)]), params)
    together = curvature.friction(matvec, stacked, stacked=True)
    each = [
        curvature.friction(matvec, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        for i in range(3)
    ]
    np.testing.assert_allclose(together, each, rtol=1e-5)
    np.testing.assert_allclose(together[1], 4 * together[0], rtol=1e-5)


def test_stacked_directions_need_one_leading_axis():
    with pytest.raises(ValueError, match="one leading axis"):
        curvature.friction(lambda v: v, {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}, stacked=True)


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_parameters_keep_the_statistics(kind, name):
    _, params, batch = problem(name)
    half = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, batch
    )
    rounded = optax.tree.cast(params, jnp.bfloat16)
    signs = np.sign(normal(9, 32, sum(leaf.size for leaf in params.values())))
    exact, rough = [], []
    for v in signs:
        exact.append(compiled(kind, name)(params, batch, unflatten(v, params)))
        rough.append(compiled(kind, name)(rounded, half, unflatten(v, params)))
    exact, rough = (np.stack([flatten(v) for v in products]) for products in (exact, rough))
    assert exact.dtype == rough.dtype == np.float32
    # Some ten roundings to 8 bits, along a path that no average shortens.
    errors = np.linalg.norm(rough - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(errors) < 0.02
    # The trace along these vectors. Of a Hessian its terms may cancel, hence their size.
    frictions = np.sum(signs * exact, axis=1)
    error = np.mean(np.sum(signs * rough, axis=1)) - np.mean(frictions)
    assert abs(error) < 0.02 * np.mean(np.abs(frictions))
