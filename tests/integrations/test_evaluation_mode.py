"""Models with dropout and batch statistics, measured in evaluation mode."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fgo_jax as fgo
from fgo_jax.integrations.flax import nnx_predict_fn


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4, name="a")(x))
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(2, name="b")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.dropout(jnp.tanh(self.norm(self.a(x)))))


BATCH = {"x": jax.random.normal(jax.random.key(0), (8, 3))}
STATS = {"norm": {"mean": jnp.linspace(-0.5, 0.5, 4), "var": jnp.linspace(0.5, 2.0, 4)}}


def read(model, batch):
    return model(batch["x"])


def linen_predict(params, batch):
    return Linen().apply({"params": params, "batch_stats": STATS}, batch["x"], train=False)


@pytest.fixture(scope="module")
def model():
    model = Nnx(nnx.Rngs(0))
    for name, value in STATS["norm"].items():
        getattr(model.norm, name)[...] = value
    model.train()
    return model


def by_hand(params, batch):
    """The network without any of Flax."""
    x = batch["x"] @ params["a"]["kernel"] + params["a"]["bias"]
    x = (x - STATS["norm"]["mean"]) / jnp.sqrt(STATS["norm"]["var"] + 1e-5)
    x = jnp.tanh(x * params["norm"]["scale"] + params["norm"]["bias"])
    return x @ params["b"]["kernel"] + params["b"]["bias"]


def test_products_are_those_of_the_model_at_rest(model):
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    vector = jax.tree.map(jnp.cos, params)
    functions = by_hand, nnx_predict_fn(model, read), linen_predict
    operators = [fgo.curvature.ggn(predict) for predict in functions]
    truth, *others = jax.jit(lambda p, v: [op(p, BATCH)(v) for op in operators])(params, vector)
    for found in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), found, truth
        )
    assert not model.dropout.deterministic
    assert not model.norm.use_running_average


def test_a_linen_model_left_in_training_mode_is_refused(model):
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))

    def training(params, batch):
        return Linen().apply({"params": params, "batch_stats": STATS}, batch["x"], train=True)

    with pytest.raises(Exception, match=r"batch_stats.*immutable"):
        fgo.curvature.ggn(training)(params, BATCH)


@pytest.mark.slow
def test_a_spectrum_of_an_nnx_model_with_variables(model):
    predict = nnx_predict_fn(model, read)
    params = nnx.state(model, nnx.Param)
    report = fgo.spectrum(
        fgo.curvature.ggn(predict), params, BATCH, top=2, num_steps=8, num_starts=2
    )

    @jax.jit
    def dense(params):
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        jacobian = jax.jacobian(lambda v: by_hand(unravel(v), BATCH))(flat)
        p = jax.nn.softmax(by_hand(params, BATCH))
        hessians = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
        return jnp.einsum("nci,ncd,ndj->ij", jacobian, hessians, jacobian) / len(p)

    truth = np.linalg.eigvalsh(dense(nnx.to_pure_dict(params)))
    assert report.dimension == truth.size
    np.testing.assert_allclose(report.eigenvalues, truth[::-1][:2], rtol=1e-3)
    assert jax.tree.structure(report.eigenvectors) == jax.tree.structure(params)


def test_statistics_of_the_batch_on_request(model):
    predict = nnx_predict_fn(model, read, batch_statistics=True)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    x = BATCH["x"] @ params["a"]["kernel"] + params["a"]["bias"]
    x = jnp.tanh((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))
    truth = x @ params["b"]["kernel"] + params["b"]["bias"]
    np.testing.assert_allclose(predict(params, BATCH), truth, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.norm.mean[...], STATS["norm"]["mean"])


def test_a_part_of_the_variables(model):
    """As `nnx.Optimizer(model, tx, wrt=...)` trains it; the others keep their values."""
    kernels = nnx.All(nnx.Param, nnx.PathContains("kernel"))
    predict = nnx_predict_fn(model, read, wrt=kernels)
    everything = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params = jax.tree.map(lambda kernel: 2 * kernel, nnx.as_pure(nnx.state(model, kernels)))
    for name in ("a", "b"):
        everything[name]["kernel"] = params[name]["kernel"]
    expected = by_hand(everything, BATCH)
    np.testing.assert_allclose(predict(params, BATCH), expected, rtol=1e-4, atol=1e-5)


def test_parameters_of_another_model_are_named(model):
    params = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    with pytest.raises(ValueError, match="the parameters have no a/bias"):
        nnx_predict_fn(model, read)(params, BATCH)
