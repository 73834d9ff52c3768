"""Faults of single steps and of the data, under the default protocol, in one compiled run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from tests.faults.digits import finite, params, trainer, whole
from tests.problems import trees_equal

STEPS = 200
RATE = 1e-2
# Without a clip a spike would stay in the second moments for a thousand steps, as in Adam.
train = trainer(lambda rate: fgo.target_acquisition(rate, 20, clip_norm=1.0, average_weights=0.1))


@functools.cache
def undamaged():
    return train(RATE, whole(STEPS))


def sound(last, state):
    """Nothing that is not finite is left in the parameters or in what moves them."""
    return finite((last, state.transforms, state.slow, state.average, state.fgo_learning_rate))


BAD = slice(60, 160)  # a hundred steps


def nan_once(given):
    given.factors[BAD.start] = np.nan
    return [BAD.start]


def nan_often(given):
    given.factors[BAD] = np.nan
    return range(STEPS)[BAD]


def infinite_leaf(given):
    given.factors[BAD.start, 2] = np.inf
    return [BAD.start]


def wrong_labels(given):
    given.labels[BAD.start, 5] = 10  # of ten classes
    return [BAD.start]


@pytest.mark.parametrize("fault", [nan_once, nan_often, infinite_leaf, wrong_labels])
def test_bad_steps_are_skipped(fault):
    _, _, losses, _ = undamaged()
    given = whole(STEPS)
    # Good steps see the batches of the run without damage, in their order.
    bad = np.asarray(fault(given))
    good = np.setdiff1d(np.arange(STEPS), bad)
    ordered = whole(STEPS)
    given.images[good] = ordered.images[: len(good)]
    given.labels[good] = ordered.labels[: len(good)]
    last, state, seen, skipped = train(RATE, given)
    assert int(state.skipped_steps) == len(bad)
    np.testing.assert_array_equal(np.diff(skipped, prepend=0).nonzero()[0], bad)
    assert int(state.clock.total_step) == len(good)
    # Bit for bit: the bad steps might as well not have been.
    np.testing.assert_array_equal(seen[good], losses[: len(good)])
    assert sound(last, state)


def spike(given):
    given.factors[100] = 1e4
    given.loss_factor[100] = 1e4


def identical(given):
    given.images[:], given.labels[:] = given.images[0], given.labels[0]


def one_example(given):
    # The mean over equal examples is that of a batch of one.
    given.images[:], given.labels[:] = given.images[:, :1], given.labels[:, :1]


@pytest.mark.parametrize(("fault", "most"), [(spike, 1.5), (identical, 1.0), (one_example, 6.0)])
def test_training_survives(fault, most):
    given = whole(STEPS)
    fault(given)
    last, state, seen, _ = train(RATE, given)
    *_, losses, _ = undamaged()
    assert int(state.skipped_steps) == 0
    assert seen[-40:].mean() < most * losses[-40:].mean()
    assert seen[-40:].mean() < 0.5 * seen[:10].mean()
    assert sound(last, state)
    assert not bool(fgo.telemetry(state)["uphill"])
    if fault is identical:
        assert int(state.clock.phase) == 0, "without noise there is nothing to damp"


def test_a_dead_layer_stays():
    given = whole(STEPS)
    given.factors[:, :2] = 0.0
    last, state, seen, _ = train(RATE, given)
    first, second = (f"layers_{i}" for i in (0, 2))
    assert trees_equal(last[first], params()[first])
    assert not trees_equal(last[second], params()[second])
    assert seen[-40:].mean() < 0.6 * seen[:5].mean()
    assert sound(last, state)


@pytest.mark.parametrize("rate", [1e-12, 1e4])
def test_rates_out_of_reason(rate):
    last, state, seen, _ = train(rate, whole(STEPS))
    assert int(state.skipped_steps) == 0
    assert sound(last, state)
    if rate < 1:
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), last, params())
        assert max(jax.tree.leaves(moved)) < 1e-6
    else:
        assert np.isfinite(np.asarray(seen)).all()
