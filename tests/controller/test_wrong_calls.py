"""Wrong arguments of a constructor or of `update` say what to do; right ones pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
ADAM = optax.scale_by_adam()
INFINITE = float("inf")

WRONG = {
    "infinite hand-over": (
        lambda: fgo.target_acquisition(1e-3, handover_steps=INFINITE),
        "handover_steps must be an integer >= 1, got inf",
    ),
    "infinite warm-up": (lambda: fgo.acquisition(1e-3, INFINITE), "warmup_steps must be an"),
    "infinite horizon": (
        lambda: fgo.target_acquisition(1e-3, total_steps=INFINITE),
        "total_steps must be an integer",
    ),
    "infinite decay": (lambda: fgo.decays.cosine(INFINITE), "steps must be an integer"),
    "NaN steps": (lambda: fgo.triggers.after(float("nan")), "steps must be an integer"),
    "window of the average": (
        lambda: fgo.target_acquisition(1e-3, average_weights=2.0),
        r"average_weights must lie in \[0, 1\], got 2.0",
    ),
    "window": (lambda: fgo.average_weights(2.0), r"window must lie in \[0, 1\]"),
    "window of the momentum": (lambda: fgo.slow_momentum(window=2.0), r"window must lie in"),
    "horizon": (
        lambda: fgo.target_acquisition(1e-3, 100, total_steps=50),
        r"total_steps=50 is shorter than the warm-up of phase 'acquisition' \(100 steps\)",
    ),
    "horizon of phased": (
        lambda: fgo.phased([fgo.acquisition(1e-3, 100)], [], total_steps=99),
        "is shorter than the warm-up",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_numbers_say_what_to_do(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()


def call(tx, grads=PARAMS, params=PARAMS, **extras):
    return tx.update(grads, tx.init(PARAMS), params, **extras)


def alone(transform=ADAM, **options):
    return fgo.phased([fgo.acquisition(1e-3, transform=transform)], [], **options)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("loss", "value"),
        ("vaule", "value"),
        ("val_loss", "validation_value"),
        ("validation_loss", "validation_value"),
        ("validation_values", "validation_value"),
        ("batches", "batch"),
        ("probe_param", "probe_params"),
    ],
)
def test_a_misspelt_argument_is_named(wrong, right):
    with pytest.raises(TypeError, match=f"update got {wrong}=.*did you mean {right}="):
        call(alone(), **{wrong: 1.0})
    # Another member of a chain may read it: then the right one is passed as well.
    call(alone(), **{wrong: 1.0, right: 1.0})


def reader(**names):
    """A transform that reads an argument called `loss`."""

    def update(updates, state, params=None, *, loss, **extra):
        return jax.tree.map(lambda g: loss * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)


READERS = {
    "itself": reader,
    "in a chain": lambda: optax.chain(optax.identity(), reader()),
    "masked": lambda: optax.masked(optax.chain(reader(), ADAM), True),
    "a partial": lambda: optax.GradientTransformationExtraArgs(
        lambda p: optax.EmptyState(), functools.partial(reader().update, nothing=None)
    ),
}


@pytest.mark.parametrize("case", READERS)
def test_what_a_phases_transform_reads_passes(case):
    updates, _ = call(alone(READERS[case]()), loss=2.0)
    assert (updates["w"] < 0).all()


def test_unknown_arguments_pass():
    call(alone(), value_fn=lambda p: 0.0, grad=PARAMS, temperature=1.0)


@pytest.mark.parametrize("name", ["value", "validation_value"])
@pytest.mark.parametrize("shape", [(1,), (3,), (32,), (1, 1)])
def test_a_loss_is_a_scalar(name, shape):
    with pytest.raises(ValueError, match=rf"{name} has the shape .*pass a scalar"):
        call(alone(), **{name: jnp.ones(shape)})


OPTIONS = {
    "parameters": ({}, PARAMS),
    "slow momentum": ({}, None),
    "average of the weights": ({"average_weights": 0.1}, PARAMS),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_gradients_of_another_shape_are_refused(case):
    options, params = OPTIONS[case]
    tx = fgo.target_acquisition(1e-3, transform=ADAM, **options)
    narrow = {"w": jnp.ones((1, 3)), "b": jnp.ones(3)}  # it would broadcast
    if case == "average of the weights":  # of the state, where the parameters changed as well
        params = narrow
    with pytest.raises(ValueError, match=r"gradient\['w'\] has the shape \(1, 3\)"):
        call(tx, narrow, params)


PREFIXES = {
    "a tree": {"layer": True, "out": False},
    "a function": lambda params: {"layer": True, "out": False},
}


@pytest.mark.parametrize("case", PREFIXES)
def test_a_mask_may_be_a_prefix_where_decays_differ(case):
    params = {"layer": {"w": jnp.ones(2), "b": jnp.ones(2)}, "out": {"w": jnp.ones(2)}}
    phases = [
        fgo.acquisition(0.1, transform=ADAM, weight_decay=0.5, mask=PREFIXES[case]),
        fgo.execution(0.1, transform=ADAM, weight_decay=0.1, cut=0.0),
    ]
    tx = fgo.phased(phases, [fgo.triggers.never()])
    zeros = optax.tree.zeros_like(params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for leaf in jax.tree.leaves(updates["layer"]):
        np.testing.assert_allclose(leaf, -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["out"]["w"], 0.0)
