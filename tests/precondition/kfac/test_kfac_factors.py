"""Factors of every kind of layer against definitions that are written out for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.curvature import losses
from fgo_jax.precondition.kfac import taps
from fgo_jax.precondition.kfac.estimate import estimator
from fgo_jax.precondition.kfac.layers import layout
from tests import draws
from tests.precondition.kfac.first_factors import ROWS, close, first_factors, moment


def test_dense_with_a_time_axis_expands_and_reduces():
    x = draws.normal(3, 5, 4)
    _, factors, drawn = first_factors(nn.Dense(2), x)
    ((a, g),) = factors[""]
    close(a, moment(x, constant=True) / 15)
    close(g, moment(drawn))
    _, factors, drawn = first_factors(nn.Dense(2), x, approximation="reduce")
    ((a, g),) = factors[""]
    close(a, moment(x.mean(1), constant=True) / 3)
    close(g, moment(drawn.sum(1)))


@pytest.mark.parametrize(
    ("axis", "features"), [(-1, (2, 3)), ((-2, -1), 3), ((1, -1), (3,)), (1, 2)]
)
def test_dense_general_with_any_axes(axis, features):
    x = draws.normal(3, 4, 2, 5)
    model = nn.DenseGeneral(features, axis=axis, use_bias=axis != 1)
    _, factors, drawn = first_factors(model, x)
    ((a, g),) = factors[""]
    axes = (axis,) if isinstance(axis, int) else axis
    last = jnp.moveaxis(x, axes, range(-len(axes), 0))
    uses = last.size // int(np.prod(last.shape[-len(axes) :]))
    close(a, moment(last, len(axes), axis != 1) / uses)
    close(g, moment(drawn, 1 if isinstance(features, int) else len(features)))


def test_the_order_of_the_axes_means_nothing_as_in_flax():
    x = draws.normal(3, 4, 2, 5)
    _, factors, _ = first_factors(nn.DenseGeneral(3, axis=(-2, -1)), x)
    _, turned, _ = first_factors(nn.DenseGeneral(3, axis=(-1, -2)), x)
    jax.tree.map(np.testing.assert_array_equal, turned, factors)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(2)(x)


def attention(p, x, push):
    """One sequence; push holds what is added to the output of each projection."""
    q, k, v = (
        jnp.einsum("td,dhe->the", x, p[n]["kernel"]) + p[n]["bias"] + push[n]
        for n in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("the,she->hts", q, k) / np.sqrt(q.shape[-1]))
    mixed = jnp.einsum("hts,she->the", weights, v)
    out = jnp.einsum("the,hed->td", mixed, p["out"]["kernel"]) + p["out"]["bias"] + push["out"]
    return out, mixed


def test_attention_projections():
    x = draws.normal(3, 5, 4)
    params, factors, drawn = first_factors(Attention(), x)
    p = params["MultiHeadDotProductAttention_0"]
    push = {n: jnp.zeros((5, 2, 2)) for n in ("query", "key", "value")} | {"out": jnp.zeros((5, 4))}

    @jax.jit
    @jax.vmap
    def truth(row, c):
        def along(e):
            out, mixed = attention(p, row, e)
            return jnp.vdot(out, c), mixed

        return jax.grad(along, has_aux=True)(push)

    gradients, mixed = truth(x, drawn)
    for name in ("query", "key", "value", "out"):
        ((a, g),) = factors[f"MultiHeadDotProductAttention_0/{name}"]
        last = name == "out"
        close(a, moment(mixed if last else x, 2 if last else 1, constant=True) / 15)
        close(g, moment(gradients[name], 1 if last else 2))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME", "strides": 2},
        {"padding": "VALID", "kernel_dilation": (2, 1)},
        {"padding": "CIRCULAR"},
        {"padding": "REFLECT"},
        {"padding": ((1, 2), 0), "input_dilation": 2},
        {"padding": "CAUSAL", "kernel_size": (3,)},
        {"padding": 1, "kernel_size": (2, 3, 2)},
    ],
    ids=str,
)
def test_patches_times_the_kernel_are_the_convolution(options):
    options = {"kernel_size": (3, 2)} | options
    model = nn.Conv(3, **options)
    x = draws.normal(2, *(6,) * len(options["kernel_size"]), 2)

    params = draws.params(model, x)
    layer = layout(params, None, lambda path: False).layers[0]

    @jax.jit
    def both(params, x):
        patches = taps._patches(layer, model, x)
        out = jnp.tensordot(patches, params["kernel"], len(layer.inputs)) + params["bias"]
        return out, model.apply({"params": params}, x)

    np.testing.assert_allclose(*both(params, x), atol=1e-5)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_convolution(approximation):
    x = draws.normal(3, 5, 4, 2)
    model = nn.Conv(3, (2, 3), padding="VALID")
    _, factors, drawn = first_factors(model, x, approximation=approximation)
    ((a, g),) = factors[""]
    places = [(i, j) for i in range(4) for j in range(2)]
    patches = np.stack([x[:, i : i + 2, j : j + 3].reshape(3, -1) for i, j in places], 1)
    if approximation == "expand":
        close(a, moment(patches, constant=True) / 24)
        close(g, moment(drawn))
    else:
        close(a, moment(patches.mean(1), constant=True) / 3)
        close(g, moment(drawn.sum((1, 2))))


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(6, 3)
        return embed.attend(jnp.tanh(embed(tokens)))


def test_an_embedding_that_is_also_the_output():
    tokens = jax.random.randint(jax.random.key(0), (4, 5), 0, 6)
    params, factors, drawn = first_factors(Tied(), tokens, "softmax_cross_entropy")
    table = params["Embed_0"]["embedding"]
    hidden = jnp.tanh(table[tokens])
    ((counts, g), (squares, a)) = factors["Embed_0"]
    close(counts, np.bincount(np.ravel(tokens), minlength=6) / 20)
    close(g, moment((drawn @ table) * (1 - hidden**2)))
    close(squares, np.diag(moment(drawn)))
    close(a, moment(hidden) / 20)


NORMS = {
    "layer": nn.LayerNorm(),
    "rms": nn.RMSNorm(),
    "group": nn.GroupNorm(num_groups=2),
    "batch": nn.BatchNorm(use_running_average=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_have_the_squared_gradients_of_each_example(name):
    norm = NORMS[name]
    x = 2.0 * draws.normal(3, 5, 4) + 1.0
    shapes = jax.eval_shape(norm.init, jax.random.key(1), x)
    rest = jax.tree.map(jnp.zeros_like, {k: v for k, v in shapes.items() if k != "params"})
    params = jax.tree.map(lambda p: jnp.arange(1.0, 5.0), shapes["params"])

    def fn(p, x):
        return norm.apply({"params": p, **rest}, x, mutable=list(rest))[0]

    estimate = estimator(fn, "squared_error", None, False, 4096, None)
    plan, key = layout(params, None, lambda path: False), jax.random.key(5)

    @jax.jit
    def both(params):
        outputs, pull = jax.vjp(lambda p: fn(p, x), params)
        labels = losses.draw_labels("squared_error", outputs, key, ROWS)
        drawn = losses.drawn_cotangent("squared_error", outputs, labels, x)
        (grads,) = jax.vmap(pull)(jnp.eye(3)[:, :, None, None] * drawn)  # of each example alone
        return estimate(plan, params, x, key), jax.tree.map(lambda g: (g**2).sum(0), grads)

    found, expected = both(params)
    jax.tree.map(close, [item for item, _ in found], jax.tree.leaves(expected))


def test_parameters_asked_to_be_diagonal_are_unbiased():
    """The square of the sum over examples, which has the mean of the sum of squares."""
    x = draws.normal(8, 3)
    w = jnp.asarray([0.5, -1.0, 2.0])

    def fn(p, x):
        return (x * p["w"]).sum(-1, keepdims=True)

    tx = fgo.scale_by_kfac(fn, "squared_error", diagonal="*", factor_decay=0.9999, burn_in=0)
    step = lambda s, _: (tx.update({"w": w}, s, {"w": w}, batch=x)[1], None)  # noqa: E731
    state = jax.jit(lambda s: jax.lax.scan(step, s, length=2000)[0])(tx.init({"w": w}))
    # chi-squared of one degree of freedom, 2000 draws: five standard deviations are 16 %.
    np.testing.assert_allclose(state.factors[0], (x**2).mean(0), rtol=0.16)


def test_boxed_parameters_are_captured_like_bare_ones():
    def made(boxed):
        def start(*names):
            normal = nn.initializers.normal()
            return nn.with_partitioning(normal, names) if boxed else normal

        embed = nn.Embed(5, 4, embedding_init=start("a", "b"))
        conv = nn.Conv(3, (2,), kernel_init=start(None, "a", "b"))
        return nn.Sequential([embed, conv, nn.Dense(2, kernel_init=start("a", "b"))])

    x = jnp.arange(12).reshape(3, 4) % 5
    steps = []
    for model in map(made, (False, True)):
        params = model.init(jax.random.key(0), x)["params"]

        def predict(p, x, model=model):
            return model.apply({"params": p}, x)

        table = fgo.precondition.kfac_layers(predict, params, x)
        tx = fgo.scale_by_kfac(predict, "squared_error", layers=table)
        updates, _ = jax.jit(tx.update)(params, tx.init(params), params, batch=x)
        steps.append(jax.tree.leaves(updates))
        assert all(np.any(update) for update in steps[-1])
    jax.tree.map(np.testing.assert_array_equal, *steps)
