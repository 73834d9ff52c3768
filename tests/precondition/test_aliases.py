"""An alias is the chain of its preconditioner, decoupled decay and a learning rate."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

MODEL = nn.Dense(3)
BATCH = jax.random.normal(jax.random.key(0), (8, 4))
PARAMS = MODEL.init(jax.random.key(1), BATCH)["params"]
KERNELS = {"kernel": True, "bias": False}


def predict(params, batch):
    return MODEL.apply({"params": params}, batch)


# Alias, its transformation, their positional arguments, options, and names for `static_args`.
ALIASES = {
    "kronecker_fisher": (
        fgo.kronecker_fisher,
        fgo.scale_by_kronecker_fisher,
        (),
        {"refresh_every": 2, "b2": 0.9, "power": 0.5},
        ("mask", "block_size", "power", "momentum_dtype", "weight_dimension_numbers"),
    ),
    "kfac": (
        fgo.kfac,
        fgo.scale_by_kfac,
        (predict, "squared_error"),
        {"damping": 0.1, "b1": 0.5},
        ("mask", "predict_fn", "loss", "approximation", "diagonal", "layers", "weights",
         "block_size", "axis_name", "seed"),
    ),
    "fismo": (
        fgo.fismo,
        fgo.scale_by_fismo,
        (),
        {"beta": 0.8, "consistent_rms": 0.2, "refresh_every": 3},
        ("mask", "ns_coeffs", "ns_steps", "block_size", "weight_dimension_numbers"),
    ),
}  # fmt: skip
aliases = pytest.mark.parametrize(
    ("alias", "scale_by", "model", "options", "static"), ALIASES.values(), ids=ALIASES
)


def trained(tx, steps=4):
    """All parameters on the way, and the last state."""
    params, state, path = PARAMS, tx.init(PARAMS), []

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean(jnp.square(predict(p, BATCH) - 1.0)))(params)
        updates, state = tx.update(grads, state, params, batch=BATCH)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    return path, state


@aliases
@pytest.mark.parametrize("rate", [0.1, optax.linear_schedule(0.2, 0.1, 3)], ids=["number", "law"])
def test_is_the_chain_exactly(alias, scale_by, model, options, static, rate):
    del static
    ours, _ = trained(alias(rate, *model, weight_decay=0.3, mask=KERNELS, **options))
    theirs, _ = trained(
        optax.chain(
            scale_by(*model, **options),
            optax.add_decayed_weights(0.3, KERNELS),
            optax.scale_by_learning_rate(rate),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@aliases
def test_has_the_options_and_defaults_of_its_transformation(
    alias, scale_by, model, options, static
):
    del model, options
    ours = dict(inspect.signature(alias).parameters)
    assert next(iter(ours)) == "learning_rate"
    added = {name: ours.pop(name) for name in ("learning_rate", "weight_decay", "mask")}
    assert [parameter.default for parameter in added.values()] == [
        inspect.Parameter.empty,
        0.0,
        None,
    ]
    theirs = inspect.signature(scale_by).parameters
    assert {name: p.default for name, p in ours.items()} == {
        name: p.default for name, p in theirs.items()
    }
    assert set(static) <= {*ours, "mask"}


@aliases
def test_learning_rates_can_be_injected(alias, scale_by, model, options, static):
    del scale_by
    law = optax.linear_schedule(0.2, 0.1, 3)
    injected = optax.inject_hyperparams(alias, static_args=static)
    ours, state = trained(injected(law, *model, **options))
    # The rate of the last step, the fourth.
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1)
    plain, _ = trained(alias(law, *model, **options))
    # Injected decay rates are rounded to float32, and 1 - b with them. Inverses pass that on.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_negative_rates_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a finite number >= 0"):
        fgo.kronecker_fisher(**{"learning_rate": 0.1, name: -1.0})
