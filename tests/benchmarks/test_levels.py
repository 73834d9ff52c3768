"""Where a race's targets come from."""

import numpy as np

from benchmarks.levels import make_levels
from benchmarks.tasks import get_task
from benchmarks.training import Curves


def _run(level):
    steps = np.arange(1, 9)
    curve = np.full(8, level)
    return Curves(steps, curve, curve, curve, {}, {}, 0.0)


def test_a_target_is_measured_on_seeds_that_did_not_choose_the_setting():
    trials = {"constant": [[_run(0.5)] * 3, [_run(0.2), _run(0.1), _run(0.9)], [_run(0.3)] * 3]}
    repeated = []

    def repeat(name, index):
        repeated.append((name, index))
        return [_run(0.35), _run(0.4), _run(0.2), _run(0.38), _run(0.6)]

    levels = make_levels(get_task("digits_vit"), trials, repeat)
    assert repeated == [("constant", 1)]
    assert [level.target for level in levels] == [0.38]


def test_a_fixed_target_needs_no_runs():
    levels = make_levels(get_task("quadratic_bowl"), {"constant": []}, lambda *_: [])
    assert [level.target for level in levels] == [1e-6]
