"""K-FAC of nnx models: the layers' linen twins give what the linen model gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fgo_jax as fgo
from fgo_jax.integrations.flax import nnx_predict_fn
from fgo_jax.precondition.kfac.estimate import estimator
from fgo_jax.precondition.kfac.layers import layout


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 6, name="embed")
        x = embed(tokens)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm(name="norm")(x))
        x = jnp.tanh(nn.Conv(6, (3,), name="conv")(x))
        x = nn.BatchNorm(use_running_average=True, name="batch_norm")(x)
        x = nn.RMSNorm(name="rms")(nn.GroupNorm(3, name="group")(x))
        return embed.attend(nn.DenseGeneral(6, name="dense")(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs)
        self.conv = nnx.Conv(6, 6, (3,), rngs=rngs)
        self.batch_norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.group = nnx.GroupNorm(6, 3, rngs=rngs)
        self.rms = nnx.RMSNorm(6, rngs=rngs)
        self.dense = nnx.LinearGeneral(6, 6, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        x = self.batch_norm(self.dropout(jnp.tanh(self.conv(x))))
        return self.embed.attend(self.dense(self.rms(self.group(x))))


TOKENS = jax.random.randint(jax.random.key(0), (8, 5), 0, 7)


@pytest.fixture(scope="module")
def model():
    model = Nnx(nnx.Rngs(0))
    stats = model.batch_norm
    stats.mean[...], stats.var[...] = jnp.linspace(-0.5, 0.5, 6), jnp.linspace(0.5, 2.0, 6)
    return model


def test_factors_are_those_of_the_linen_model(model):
    predict = nnx_predict_fn(model)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    stats = {"batch_norm": {"mean": model.batch_norm.mean[...], "var": model.batch_norm.var[...]}}

    def linen(params, tokens):
        return Linen().apply({"params": params, "batch_stats": stats}, tokens)

    def found(predict, params):
        plan = layout(params, None, lambda path: False, predict)
        estimate = estimator(predict, "softmax_cross_entropy", None, False, 4096, None)
        factors = estimate(plan, params, TOKENS, jax.random.key(3))
        return predict(params, TOKENS), factors

    twin = nnx.to_pure_dict(params)
    (ours, factors), (theirs, expected) = jax.jit(
        lambda ours, theirs: (found(predict, ours), found(linen, theirs))
    )(params, twin)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(factors) == len(expected) == 14
    for one, other in zip(jax.tree.leaves(factors), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_trains_under_nnx_optimizer():
    x = jax.random.normal(jax.random.key(1), (64, 4))
    batch = {"x": x, "y": jnp.argmax(x @ jax.random.normal(jax.random.key(2), (4, 3)), -1)}
    model = nnx.Sequential(
        nnx.Linear(4, 8, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
    )
    predict = nnx_predict_fn(model, lambda model, batch: model(batch["x"]))
    optimizer = nnx.Optimizer(model, fgo.kfac(0.3, predict), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        def loss(model):
            logits = model(batch["x"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads, value=value, batch=batch)
        return value

    losses = [float(step(model, optimizer, batch)) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def test_kernels_alone_with_frozen_biases():
    model, kernels = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.PathContains("kernel")
    tx = fgo.scale_by_kfac(nnx_predict_fn(model, wrt=kernels), "squared_error")
    params = nnx.as_pure(nnx.state(model, kernels))

    def step(params):
        return tx.update(params, tx.init(params), params, batch=jnp.ones((4, 3)))

    updates, state = jax.eval_shape(step, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert [factor.shape for factor in state.factors[0][0]] == [(3, 3), (2, 2)]


class Doubled(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Stacked(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs))(rngs.split(2))

    def __call__(self, x):
        return nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, self.layers
        )


@pytest.mark.parametrize(
    ("make", "diagonal"),
    [(lambda rngs: Doubled(3, 3, rngs=rngs), "*"), (lambda rngs: Stacked(rngs), "layers/*")],
)
def test_what_cannot_be_captured_is_named_with_a_way_out(make, diagonal):
    model = make(nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    predict, x = nnx_predict_fn(model), jnp.ones((4, 3))

    def step(tx):
        return jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=x), params)

    with pytest.raises(ValueError, match="diagonal="):
        step(fgo.scale_by_kfac(predict, "squared_error"))
    step(fgo.scale_by_kfac(predict, "squared_error", diagonal=diagonal))
