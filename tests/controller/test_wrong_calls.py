"""Wrong arguments of a constructor or of `update` say what to do; right ones pass."""

import dataclasses
import functools
from typing import NamedTuple

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
        r"total_steps=50 ends phase 'acquisition' by step 18, in its warm-up of 100 steps",
    ),
    "endless decay that comes first": (
        lambda: fgo.phased([fgo.execution(1e-3)], [], total_steps=1000),
        r"no steps before it give its decay a length: pass one, as in fgo.decays.cosine\(1000\)\.",
    ),
    "decay that comes first": (
        lambda: fgo.phased([fgo.execution(1e-3, decay=fgo.decays.cosine())], []),
        r"fgo.decays.cosine\(1000\), or total_steps=",
    ),
    "horizon of phased": (
        lambda: fgo.phased([fgo.acquisition(1e-3, 100)], [], total_steps=99),
        "by step 99, in its warm-up",
    ),
    "deadline in the warm-up": (
        lambda: fgo.target_acquisition(1e-3, 100, total_steps=280),
        "by step 98, in its warm-up of 100 steps",
    ),
    "a phase alone": (lambda: fgo.phased(fgo.acquisition(1e-3), []), "phases must be a list"),
    "a phase to accumulate": (
        lambda: fgo.accumulate(fgo.acquisition(1e-3), 2),
        r"got Phase: put phases into fgo\.phased",
    ),
    "a function to graft": (lambda: fgo.graft(optax.adam, ADAM), "got function: call it"),
    "a name to describe": (lambda: fgo.describe("adam", PARAMS), r"got str: such as optax\.adam"),
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


def test_a_state_made_with_another_probe_of_its_kind_is_refused():
    wide, narrow = (alone(probe=fgo.probes.gradient_stream(width=w)) for w in (64, 32))
    message = r"Shapes in the probe's state: .*pending.*64.* in the state, .*32.* in this optimizer"
    with pytest.raises(ValueError, match=message):
        narrow.update(PARAMS, wide.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    "wrapped", [lambda tx: tx, fgo.keep_best, lambda tx: fgo.accumulate(tx, 2)]
)
@pytest.mark.parametrize("number", [[1.0], "1", {"loss": 1.0}, 1j])
def test_a_loss_is_a_number(wrapped, number):
    with pytest.raises(ValueError, match=r"validation_value is of type .*: pass a real scalar"):
        call(wrapped(alone()), validation_value=number)


OTHER = {
    "average": ({"average_weights": 0.1}, "Average of the weights: False in the state, True in"),
    "probe": ({"probe": fgo.probes.gradient_stream()}, "Signals: .* in the state"),
    "trigger": ({"last": fgo.triggers.never()}, r"Conditions: .* in the state, .*'never'"),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_state_made_with_other_options_is_refused(case):
    (options, message), plain = OTHER[case], alone().init(PARAMS)
    last = [trigger for name, trigger in options.items() if name == "last"]
    options = {name: option for name, option in options.items() if name != "last"}
    phases = [fgo.acquisition(1e-3, transform=ADAM)]
    with pytest.raises(ValueError, match=message):
        fgo.phased(phases, last, **options).update(PARAMS, plain, PARAMS)


@pytest.mark.parametrize(
    "wrapped", [lambda tx: tx, fgo.keep_best, lambda tx: fgo.accumulate(tx, 2)]
)
def test_what_is_no_state_of_this_optimizer_is_refused(wrapped):
    tx = wrapped(alone())
    for state in (PARAMS, None, ADAM.init(PARAMS)):
        with pytest.raises(ValueError, match=r"got a state of type .*: call update"):
            tx.update(PARAMS, state, PARAMS, validation_value=1.0)


class Counted(NamedTuple):
    evaluations: jax.Array


def reading(read, name="five", state=Counted):
    """A probe that measures nothing, and reads something."""
    return fgo.probes.Probe(
        signals=(name,),
        init=lambda params: state(jnp.int32(0)),
        due=lambda state, step: step >= 0,
        measure=lambda inputs, state: state,
        read=lambda state: read,
    )


READINGS = {
    "a float": ({"five": 5.0}, "reads 'five' as float: return an fgo.probes.Estimate"),
    "nothing": (None, "into a dict, got NoneType"),
    "another": ({"six": fgo.probes.Estimate(1.0, 1.0)}, r"signals \['five'\].*got \['six'\]"),
    "a vector": ({"five": fgo.probes.Estimate(jnp.ones(2), 1.0)}, "has the shape"),
}


@pytest.mark.parametrize("case", READINGS)
def test_a_probe_reads_an_estimate_of_each_signal(case):
    read, message = READINGS[case]
    with pytest.raises(ValueError, match=message):
        call(alone(probe=reading(read)))


def test_a_wrong_probe_is_named():
    with pytest.raises(ValueError, match="state needs an int32 field `evaluations`"):
        call(alone(probe=reading({}, state=lambda count: (count,))))
    for make in (alone, functools.partial(fgo.target_acquisition, 1e-3)):
        with pytest.raises(ValueError, match=r"probe= must be an fgo\.probes\.Probe.*got function"):
            make(probe=fgo.probes.gradient_stream)
    for name in ("phase", "loss", "condition/x"):
        with pytest.raises(ValueError, match="is the name of another number"):
            alone(probe=reading({}, name))
    with pytest.raises(ValueError, match="requires must be one of params, batch, got 'batches'"):
        dataclasses.replace(reading({}), requires=("batches",))
    with pytest.raises(ValueError, match=r"signals must be a tuple of names: pass \('five',\)"):
        dataclasses.replace(reading({}), signals="five")


SCHEDULED = {
    "the learning rate of phase 'acquisition'": lambda law: fgo.phased(
        [fgo.acquisition(law, transform=ADAM)], []
    ),
    "mu_x": lambda law: fgo.scale_by_primal_averaging(law, 0.5),
    "weight": lambda law: fgo.graft(ADAM, ADAM, law),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_schedule_returns_a_scalar(name):
    made = SCHEDULED[name](lambda step: jnp.full(3, 0.1))
    with pytest.raises(ValueError, match=rf"{name} must be one number .* the shape \(3,\)"):
        call(made)


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


OTHERS = {
    "missing": ({"w": PARAMS["w"]}, r"there is no (gradient|parameter) at \['b'\], but a leaf in"),
    "additional": (
        PARAMS | {"c": jnp.ones(3)},
        r"there is a (gradient|parameter) at \['c'\], but no leaf in",
    ),
    "narrow": (PARAMS | {"w": jnp.ones((1, 3))}, r"\['w'\] has the shape \(1, 3\), but"),
}
WITH_A_TREE = {
    "phased": alone,
    "accumulate": lambda: fgo.accumulate(alone(), 2),
    "keep_best": lambda: fgo.keep_best(optax.sgd(0.1)),
    "average_weights": fgo.average_weights,
    "slow_momentum": fgo.slow_momentum,
    "primal averaging": lambda: fgo.scale_by_primal_averaging(0.9, 0.9),
    "graft": lambda: fgo.graft(ADAM, ADAM),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", WITH_A_TREE)
def test_another_tree_is_named_by_the_first_path_that_differs(name, other):
    tx, (tree, message) = WITH_A_TREE[name](), OTHERS[other]
    trees = (PARAMS, tree) if name in ("keep_best", "average_weights") else (tree, PARAMS)
    with pytest.raises(ValueError, match=f"{message} .*: pass .*, or make a new state"):
        call(tx, *trees, validation_value=0.1)
    if name in ("keep_best", "average_weights", "primal averaging"):
        read = fgo.best_params if name == "keep_best" else fgo.eval_params
        with pytest.raises(ValueError, match=f"{message} .*: pass the parameters"):
            read(tx.init(PARAMS), tree)


def test_a_module_in_place_of_its_arrays_is_refused():
    tx = fgo.target_acquisition(1e-3, transform=ADAM)
    arrays = {"w": jnp.ones(2), "activation": None}
    with pytest.raises(ValueError, match=r"hold a function, at \['activation'\]: pass the arrays"):
        tx.update(arrays, tx.init(arrays), arrays | {"activation": jax.nn.relu})
    with pytest.raises(ValueError, match="hold a function"):
        tx.init(arrays | {"activation": jax.nn.relu})


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
