"""What a spectrum refuses, and what it says then."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.problems import mlp, mlp_batch, mlp_params

PARAMS, BATCH = mlp_params(width=4), mlp_batch(0, 16)


def predict(params, batch):
    return mlp(params, batch["x"])


LOSSES = fgo.curvature.example_losses(predict, labels="y")
GGN = fgo.curvature.ggn(predict)
spectrum = functools.partial(fgo.spectrum, num_steps=12, num_starts=2)


def labelled(label):
    return BATCH | {"y": BATCH["y"].at[3].set(label)}


@pytest.mark.parametrize("label", [-100, -1, 3])
@pytest.mark.parametrize(
    "operator", [fgo.curvature.hessian(LOSSES), fgo.curvature.empirical_fisher(LOSSES)]
)
def test_labels_out_of_range_are_refused(operator, label):
    message = rf"labels from 0 to 2, got .*{label}.*weight of zero"
    with pytest.raises(ValueError, match=message):
        spectrum(operator, PARAMS, labelled(label))
    with pytest.raises(ValueError, match=message):
        spectrum(operator, PARAMS, batches=[BATCH, labelled(label)])


def test_labels_out_of_range_are_refused_in_the_rows():
    rows_fn = fgo.probes.example_gradients(
        lambda p, e: LOSSES(p, jax.tree.map(lambda leaf: leaf[None], e))[0]
    )
    with pytest.raises(ValueError, match="labels are within the classes"):
        spectrum(GGN, PARAMS, labelled(-100), rows_fn=rows_fn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda p, b: LOSSES(p, b), PARAMS, BATCH), "make an operator of a loss by fgo.curv"),
        ((lambda p, b: LOSSES(p, b).mean(), PARAMS, BATCH), "make an operator of a loss by fgo"),
        ((PARAMS, GGN, BATCH), "got dict: check the order of the arguments"),
        ((GGN, BATCH, PARAMS), "'y' is int32: check that params and batch are in this order"),
        ((GGN, PARAMS | {"step": jnp.int32(3)}, BATCH), "'step' is int32.*False in mask="),
    ],
)
def test_arguments_of_another_kind(arguments, message):
    with pytest.raises(ValueError, match=message):
        spectrum(*arguments)


def test_an_error_of_the_model_tells_the_order_of_the_arguments():
    with pytest.raises(KeyError) as caught:
        spectrum(GGN, PARAMS, {"inputs": BATCH["x"]})
    notes = " ".join(caught.value.__notes__)
    assert "(operator, params, batch), in this order" in notes


def test_too_few_steps_for_the_default_number_of_eigenpairs():
    with pytest.raises(ValueError, match=r"num_steps= of at least 10 .*or smaller.*top="):
        fgo.spectrum(GGN, PARAMS, BATCH, num_steps=8)


@pytest.mark.parametrize("probe", [fgo.probes.lanczos, fgo.probes.hutchinson])
def test_a_probe_of_a_loss(probe):
    with pytest.raises(ValueError, match="operator must be a function"):
        probe("ggn")
    probe = probe(LOSSES, examples=16)
    key = jax.random.key(0)
    inputs = fgo.probes.ProbeInputs(None, None, PARAMS, BATCH, key, jnp.int32(0))
    with pytest.raises(ValueError, match="make an operator of a loss by"):
        probe.measure(inputs, probe.init(PARAMS))


@pytest.mark.parametrize(
    "make", [fgo.scale_by_low_rank_fisher, lambda f: fgo.scale_by_diagonal_fisher(operator=f)]
)
def test_a_transform_of_a_loss(make):
    transform = make(LOSSES)
    with pytest.raises(ValueError, match="make an operator of a loss by"):
        transform.update(PARAMS, transform.init(PARAMS), PARAMS, batch=BATCH)


def test_rows_of_an_operator():
    with pytest.raises(ValueError, match="got a function, as an operator returns"):
        spectrum(GGN, PARAMS, BATCH, rows_fn=GGN)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: fgo.curvature.ggn(predict, f),
        fgo.curvature.ggn,
        fgo.curvature.sampled_fisher,
        fgo.curvature.hessian,
        fgo.curvature.empirical_fisher,
        fgo.curvature.example_losses,
        fgo.probes.example_gradients,
    ],
)
@pytest.mark.parametrize(
    "loss", [optax.softmax_cross_entropy, functools.partial(optax.l2_loss, targets=0.0)]
)
def test_a_loss_of_optax_is_of_another_form(make, loss):
    with pytest.raises(ValueError, match=r"but optax.\w+ takes outputs and labels: wrap it"):
        make(loss)


def test_batches_may_come_from_a_generator():
    given = spectrum(GGN, PARAMS, batches=(BATCH for _ in range(2)))
    listed = spectrum(GGN, PARAMS, batches=[BATCH, BATCH])
    np.testing.assert_array_equal(given.eigenvalues, listed.eigenvalues)
    with pytest.raises(ValueError, match="holds no arrays"):
        spectrum(GGN, PARAMS, batches=iter(()))


def test_frozen_parameters_take_the_masks_and_groups_of_plain_ones():
    mask = {"hidden": True, "out": False}
    masked = fgo.curvature.ggn(predict, mask=mask)
    groups = fgo.probes.layer_groups({"hidden": PARAMS["hidden"]})
    plain = spectrum(masked, PARAMS, BATCH, groups=groups)
    frozen = spectrum(masked, flax.core.freeze(PARAMS), BATCH, groups=groups)
    assert plain.dimension == frozen.dimension == 36
    np.testing.assert_array_equal(plain.eigenvalues, frozen.eigenvalues)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"hidden": True}, "mask has no entry for the parameter 'out/kernel'"),
        ({"hidden": True, "out": True, "head": False}, r"entries for \['head'\]"),
    ],
)
def test_a_mask_of_another_tree(mask, message):
    with pytest.raises(ValueError, match=message):
        fgo.curvature.ggn(predict, mask=mask)(PARAMS, BATCH)
