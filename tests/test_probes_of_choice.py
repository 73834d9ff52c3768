"""Every probe serves the protocol as it is: the default triggers fit what it measures."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo
from tests.problems import mlp, mlp_loss, train

fisher = fgo.curvature.ggn(lambda params, batch: mlp(params, batch["x"]))


def one_loss(params, example):
    """The loss of one example: `mlp_loss` takes a mean over a leading axis."""
    return mlp_loss(params, jax.tree.map(lambda x: x[None], example))


PROBES = {
    "lanczos": lambda: fgo.probes.lanczos(fisher, every=5),
    "hutchinson": lambda: fgo.probes.hutchinson(fisher, every=5),
    "gram": lambda: fgo.probes.gram(fgo.probes.example_gradients(one_loss), every=5, examples=16),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_without_agreement_ends_phases_by_its_dimension(name):
    tx = fgo.target_acquisition(1e-2, 10, transform=optax.scale_by_adam(), probe=PROBES[name]())
    state = train(tx, 12, extras=lambda value, batch, step: {"value": value, "batch": batch})[1]
    told = fgo.telemetry(state)
    assert jnp.isfinite(told["intrinsic_dimension"])
    conditions = {key for key in told if key.startswith("condition/")}
    assert conditions == {
        "condition/acquisition/intrinsic_dimension_stopped_falling",
        "condition/acquisition/not_loss_increasing",
        "condition/reask/intrinsic_dimension_stall",
        "condition/execution/validation_plateau",
    }


def test_the_default_probe_keeps_the_default_triggers():
    stream = fgo.triggers.defaults(fgo.probes.gradient_stream().signals)
    for name, trigger in fgo.triggers.defaults().items():
        assert trigger.signals == stream[name].signals
    assert stream["reask"].signals == {"agreement"}


def test_a_probe_of_ones_own_without_a_dimension_asks_for_triggers():
    own = fgo.probes.Probe(
        signals=("sharpness",),
        init=lambda params: None,
        due=lambda state, step: step < 0,
        measure=lambda inputs, state: state,
        read=lambda state: {},
    )
    with pytest.raises(ValueError, match=r"reads \['intrinsic_dimension'\].*triggers= that read"):
        fgo.target_acquisition(1e-2, probe=own)
    ends = {"acquisition": fgo.triggers.below("sharpness", 1.0), "reask": fgo.triggers.never()}
    fgo.target_acquisition(1e-2, probe=own, triggers=ends)
