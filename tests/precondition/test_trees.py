"""Parameters and masks of unusual types: Python numbers, frozen dictionaries, callable trees."""

import dataclasses

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.precondition.natural_gradients import BATCH, MAKERS, PARAMS
from tests.problems import trees_equal


def scaled(params, batch):
    return params["scale"] * (batch[:, :2] @ params["w"])


FLOATS = {
    "kronecker": MAKERS["kronecker"],
    "kronecker, centred": MAKERS["kronecker, centred"],
    "shampoo": MAKERS["shampoo"],
    "fismo": MAKERS["fismo"],
    "graft": MAKERS["graft"],
    "graft on kronecker": MAKERS["graft on kronecker"],
    "diagonal": lambda: fgo.scale_by_diagonal_fisher(scaled),
    "low rank": lambda: fgo.scale_by_low_rank_fisher(fgo.curvature.ggn(scaled), 2, 4),
    "kfac": lambda: fgo.scale_by_kfac(scaled, diagonal="*"),
    "softmax radius": lambda: fgo.clip_by_softmax_radius(scaled),
    "friction limit": lambda: fgo.scale_by_friction_limit(scaled),
}


@pytest.mark.parametrize("name", FLOATS)
def test_python_numbers_are_parameters_as_for_adam(name):
    tx = FLOATS[name]()
    params = {"scale": 1.0, "w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
    grads, state = {"scale": 0.5, "w": params["w"]}, tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params, batch=BATCH, grad=grads)
    assert jnp.shape(updates["scale"]) == ()
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))
    if hasattr(tx, "metric"):
        assert jnp.shape(tx.metric(grads, state)["scale"]) == ()


def test_kfac_takes_frozen_dictionaries():
    programs, states = [], []
    for params in (PARAMS, flax.core.freeze(PARAMS)):
        tx = MAKERS["kfac"]()
        step = jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p, batch=BATCH))
        states.append(tx.init(params))
        traced = step.trace(params, states[-1], params)
        assert isinstance(traced.out_info[0], type(params))
        programs.append(str(traced.jaxpr))
    # One program on equal numbers gives equal numbers.
    assert programs[0] == programs[1]
    assert trees_equal(*map(jax.tree.leaves, states))


class Wrapped(nn.Module):
    wrapper: type

    @nn.compact
    def __call__(self, x):
        extra = {"update_stats": False} if self.wrapper is nn.SpectralNorm else {}
        x = nn.Dense(5)(x)
        return self.wrapper(nn.Dense(3))(x, **extra)


@pytest.mark.parametrize(
    ("wrapper", "diagonal", "match"),
    [
        (nn.SpectralNorm, (), r"inside SpectralNorm.* diagonal=\['Dense_1/\*'\]"),
        (nn.WeightNorm, (), r"scales of an nn\.WeightNorm in diagonal="),
        (nn.WeightNorm, "WeightNorm_0/*", r"inside WeightNorm.* diagonal=\['Dense_1/\*'\]"),
    ],
)
def test_kfac_says_what_to_do_with_normalised_kernels(wrapper, diagonal, match):
    model = Wrapped(wrapper)
    held = jax.jit(model.init)(jax.random.key(0), BATCH)
    params, rest = held["params"], {k: v for k, v in held.items() if k != "params"}

    def step(diagonal):
        tx = fgo.scale_by_kfac(
            lambda params, batch: model.apply({"params": params, **rest}, batch), diagonal=diagonal
        )
        return jax.jit(lambda p: tx.update(p, tx.init(p), p, batch=BATCH))(params)

    with pytest.raises(ValueError, match=match):
        step(diagonal)
    updates, _ = step(["WeightNorm_0/*", "Dense_1/*"] if wrapper is nn.WeightNorm else "Dense_1/*")
    assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """As a module of Equinox: a tree of parameters that is called on its inputs."""

    kernel: object
    bias: object

    def __call__(self, x):
        return x @ self.kernel + self.bias


LAYER = Module(jnp.ones((3, 2)), jnp.ones(2))


def step(tx, params=LAYER):
    return tx.update(params, tx.init(params), params)[0]


@pytest.mark.parametrize("alias", [fgo.kronecker_fisher, fgo.fismo])
def test_a_mask_that_can_be_called_is_a_mask(alias):
    mask = Module(True, False)
    decaying = step(alias(0.1, weight_decay=0.5, mask=mask))
    plain = step(alias(0.1))
    np.testing.assert_allclose(decaying.kernel, plain.kernel - 0.05, rtol=1e-6)
    np.testing.assert_array_equal(decaying.bias, plain.bias)
    assert trees_equal(decaying, step(alias(0.1, weight_decay=0.5, mask=lambda params: mask)))


@pytest.mark.parametrize("factory", [fgo.scale_by_kronecker_fisher, fgo.scale_by_fismo])
def test_dimension_numbers_that_can_be_called_are_a_tree(factory):
    numbers = Module(optax.contrib.MuonDimensionNumbers(1, 0), None)
    tree, function = (
        step(factory(weight_dimension_numbers=given)) for given in (numbers, lambda params: numbers)
    )
    assert trees_equal(tree, function)


def test_a_masked_preconditioner_takes_a_callable_mask():
    inner = fgo.scale_by_kronecker_fisher()
    updates = step(fgo.precondition.masked(inner, Module(True, False)))
    np.testing.assert_array_equal(updates.bias, LAYER.bias)
