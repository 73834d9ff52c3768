"""What a spectrum refuses, and what it says then."""

import functools

import jax
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
