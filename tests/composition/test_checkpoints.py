"""Runs saved in every phase and resumed in a fresh process, on other numbers of devices."""

import json

import numpy as np
import pytest

from tests import fresh_process
from tests.composition import checkpoint_program
from tests.composition.checkpoint_program import POINTS, RATE

SLOWER = f"start:slower:1:{RATE / 2}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    whole = json.loads(json.dumps(checkpoint_program.train(folder)))  # where NaN is NaN
    # The first writes what the next ones begin from.
    pairs = ("start:eight:8", "eight:two:2", "start:one:1", "eight:one again:1", SLOWER)
    done = fresh_process.run("-m", "tests.composition.checkpoint_program", str(folder), *pairs)
    assert done.returncode == 0, done.stderr[-3000:]
    return whole, json.loads(done.stdout.splitlines()[-1])


at_each_point = [pytest.mark.slow, pytest.mark.parametrize("name", POINTS)]


def each(test):
    for mark in at_each_point:
        test = mark(test)
    return test


@each
def test_the_checkpoints_lie_where_they_should(name, runs):
    told = runs[0]["start"][name]["telemetry"]
    phase = {"acquisition": 0, "a hand-over": 1, "re-ask": 1, "execution": 2}[name]
    assert told["phase"] == phase
    assert (told["handover_left"] > 0) == (name == "a hand-over")


@each
def test_a_fresh_process_goes_on_bit_for_bit(name, runs):
    whole, resumed = runs
    assert resumed["start:one:1"][name] == whole["after 50"][name]


@each
def test_other_devices_make_the_same_transitions(name, runs):
    """1 to 8, 8 to 2 and 8 to 1 devices: sums in another order, the same decisions."""
    whole, resumed = runs
    for pair in ("start:eight:8", "eight:two:2", "eight:one again:1"):
        found = resumed[pair][name]
        truth = whole["after 50" if pair.startswith("start") else "after 100"][name]
        for key, number in found["telemetry"].items():
            exact = key.startswith(("phase", "started", "cause", "stop", "handover", "condition"))
            rtol = 0 if exact else 1e-3
            np.testing.assert_allclose(number, truth["telemetry"][key], rtol, 1e-5, err_msg=key)
        np.testing.assert_allclose(found["weights"], truth["weights"], rtol=1e-3, atol=1e-4)


@each
def test_a_restored_run_takes_the_new_learning_rate(name, runs):
    """The constructor's numbers are not in the state."""
    whole, resumed = runs
    before, after = whole["start"][name]["telemetry"], resumed[SLOWER][name]
    told = after["telemetry"]
    assert told["total_step"] == before["total_step"] + 50
    if name in ("acquisition", "re-ask"):
        assert told["learning_rate"] <= RATE / 2 * 1.0001
    assert told["learning_rate"] < 0.75 * whole["after 50"][name]["telemetry"]["learning_rate"]
