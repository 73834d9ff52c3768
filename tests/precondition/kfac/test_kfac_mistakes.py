"""Wrong uses of scale_by_kfac raise errors that say what to do instead."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.precondition.kfac.small_model import make, predict, problem


class Foreign(nn.Module):
    """A kernel that is no captured module's, and one that is a convolution's in groups."""

    what: str

    @nn.compact
    def __call__(self, x):
        if self.what == "einsum":
            return nn.Einsum((5, 3), "nd,de->ne", use_bias=False)(x)
        if self.what == "bare":
            return x @ self.param("matrix", nn.initializers.ones, (5, 3))
        if self.what == "twin":
            return x @ self.param("kernel", nn.initializers.ones, (5, 3))
        return nn.Conv(4, (2,), feature_group_count=2)(x.reshape(-1, 2, 4)[:, :, :]).sum(-2)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("einsum", r"Einsum_0/kernel.*Einsum is not a layer.*diagonal=\['Einsum_0/\*'\]"),
        ("bare", r"no layer with the parameters \['matrix'\].*diagonal=\['matrix'\]"),
        ("twin", r"parameters \['kernel'\]: Foreign is not a layer.*optax\.partition"),
        ("group", r"Conv_0/kernel.*grouped convolution.*diagonal=\['Conv_0/\*'\]"),
    ],
)
def test_what_cannot_be_captured_is_named_with_a_way_out(what, message):
    x = jnp.ones((4, 8 if what == "group" else 5))
    params = Foreign(what).init(jax.random.key(0), x)["params"]

    def fn(p, x):
        return Foreign(what).apply({"params": p}, x)

    def step(tx):
        return jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=x), params)

    with pytest.raises(ValueError, match=message):
        step(fgo.scale_by_kfac(fn, "squared_error"))
    step(fgo.scale_by_kfac(fn, "squared_error", diagonal="*"))
    step(fgo.scale_by_kfac(fn, "squared_error", diagonal=lambda path: True))


class Unbiased(nn.Module):
    """What stands before normalisations, attention, and a layer with two output axes."""

    odd: bool = False

    @nn.compact
    def __call__(self, x):
        if self.odd:
            return nn.DenseGeneral((2, 3), use_bias=False)(x)
        x = nn.Conv(6, (3,), use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=False)(x)
        return nn.MultiHeadDotProductAttention(2, use_bias=False)(x)


def test_kernels_without_a_bias_are_inferred():
    x = jnp.ones((4, 5, 6))
    params = Unbiased().init(jax.random.key(0), x)["params"]

    def fn(p, x):
        return Unbiased().apply({"params": p}, x, mutable=["batch_stats"])[0]

    layers = fgo.precondition.kfac_layers(fn, params, jax.eval_shape(lambda: x))
    read = {path.rpartition("/")[2]: (axes.stack, axes.inputs) for path, axes in layers.items()}
    assert read == {
        "Conv_0": (0, 2),
        "query": (0, 1),
        "key": (0, 1),
        "value": (0, 1),
        "out": (0, 2),
    }
    named, guessed = fgo.scale_by_kfac(fn, layers=layers), fgo.scale_by_kfac(fn)
    shapes = [jax.eval_shape(tx.init, params) for tx in (named, guessed)]
    assert shapes[0] == shapes[1]
    assert "kernel of linear layer Conv_0: factors of 18 and 6" in fgo.describe(guessed, params)
    jax.eval_shape(lambda p: guessed.update(p, guessed.init(p), p, batch=x), params)


def test_a_kernel_without_a_bias_that_is_no_convolution_asks_for_its_layers():
    x = jnp.ones((4, 5))
    params = Unbiased(odd=True).init(jax.random.key(0), x)["params"]

    def fn(p, x):
        return Unbiased(odd=True).apply({"params": p}, x)

    tx = fgo.scale_by_kfac(fn)
    with pytest.raises(ValueError, match=r"pass layers=.*kfac_layers\(predict_fn, params, batch"):
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=x), params)
    tx = fgo.scale_by_kfac(fn, layers=fgo.precondition.kfac_layers(fn, params, x))
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=x), params)


def test_kernels_whose_shape_has_two_readings_need_their_layers():
    class Cube(nn.Module):
        @nn.compact
        def __call__(self, x):
            scanned = nn.scan(
                Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
            )
            return scanned()(x, None)[0]

    x = jnp.ones((3, 4))  # four copies of a 4 x 4 kernel: like one 4 x (4, 4)
    params = Cube().init(jax.random.key(0), x)["params"]

    def fn(p, x):
        return Cube().apply({"params": p}, x)

    with pytest.raises(ValueError, match=r"do not tell .*kfac_layers"):
        fgo.scale_by_kfac(fn, "squared_error").init(params)
    layers = fgo.precondition.kfac_layers(fn, params, x)
    tx = fgo.scale_by_kfac(fn, "squared_error", layers=layers)
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=x), params)


def test_layers_of_another_model_are_an_error():
    x = jnp.ones((3, 4))
    params = nn.DenseGeneral((2, 3)).init(jax.random.key(0), x)["params"]
    wrong = {"": fgo.precondition.kfac.Axes("linear", 0, 2)}
    tx = fgo.scale_by_kfac(
        lambda p, x: nn.DenseGeneral((2, 3)).apply({"params": p}, x), "squared_error", layers=wrong
    )
    with pytest.raises(ValueError, match=r"kernel of shape \(4, 2, 3\) .* took its inputs for"):
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, batch=x), params)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


def test_required_extras_are_named():
    params, x = problem()
    tx = make()
    state = tx.init(params)
    with pytest.raises(TypeError, match=r"batch=batch"):
        tx.update(params, state, params)
    with pytest.raises(TypeError, match="all of its parameters"):
        tx.update(params, state, batch=x)
    part = optax.partition(
        {"kfac": make(), "adam": optax.scale_by_adam()},
        lambda p: {k: "adam" if k in ("unread", "LayerNorm_0") else "kfac" for k in p},
    )
    state = part.init(params)
    with pytest.raises(TypeError, match="probe_params=params"):
        part.update(params, state, params, batch=x)
    updates, _ = jax.jit(part.update)(params, state, params, batch=x, probe_params=params)
    alone, _ = jax.jit(make(norm_constraint=None).update)(params, tx.init(params), params, batch=x)
    # The layers' factors are equal; the norm constraint's factor differs.
    flat = [np.ravel(u["Dense_1"]["kernel"]) for u in (updates, alone)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 1 - 1e-5


def test_flax_nnx_is_named():
    from flax import nnx

    params = nnx.split(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))[1]
    with pytest.raises(ValueError, match=r"nnx has nothing like it: .*nnx_predict_fn"):
        fgo.scale_by_kfac(predict).init(params)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"loss": lambda z, b: z}, "known distribution of labels"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"damping": -1.0}, "damping must be a finite number >= 0"),
        ({"factor_decay": 1.0}, r"factor_decay must lie in \[0, 1\)"),
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\)"),
        ({"norm_constraint": 0.0}, "norm_constraint must be a finite number > 0"),
        ({"factors_every": 0}, "factors_every must be an integer >= 1"),
        ({"refresh_every": 0.5}, "refresh_every must be an integer >= 1"),
        ({"burn_in": -1}, "burn_in must be an integer >= 0"),
        ({"approximation": "sum"}, "approximation must be one of expand, reduce"),
        ({"block_size": 0}, "block_size must be an integer >= 1"),
        ({"diagonal": [3]}, "diagonal must hold globs"),
        ({"weights": 1.5}, "weights must be a key"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        fgo.scale_by_kfac(predict, **arguments)


def test_a_bias_without_its_kernel_is_sent_back_to_it():
    with pytest.raises(ValueError, match=r"kernel beside its bias .*Dense_0/bias.*same part"):
        fgo.scale_by_kfac(predict).init({"Dense_0": {"bias": jnp.zeros(3)}})


def test_fgo_jax_imports_without_flax():
    code = "import sys; sys.modules['flax'] = None; import fgo_jax; fgo_jax.scale_by_kfac(print)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
