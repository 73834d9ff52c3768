"""Where a race's targets come from, and what each is measured against."""

import dataclasses

import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.race.levels import ALONE, HORIZON, SQRT, Level, make_levels, num_targets
from benchmarks.runs.training import Curves
from benchmarks.tasks import get_task

VIT, BOWL = get_task("digits_vit"), get_task("quadratic_bowl")


def _run(raw, averaged=None):
    steps = np.arange(1, 9)
    averaged = raw if averaged is None else averaged
    return Curves(steps, np.full(8, raw), np.full(8, averaged), np.full(8, raw), {}, {}, 0.0)


def _never(name, index):
    raise AssertionError(f"{name} {index} was run for no level")


def test_a_target_is_measured_on_seeds_that_did_not_choose_the_setting():
    trials = {"constant": [[_run(0.5)] * 3, [_run(0.2), _run(0.1), _run(0.9)], [_run(0.3)] * 3]}
    repeated = []

    def repeat(name, index):
        repeated.append((name, index))
        return [_run(0.35), _run(0.4), _run(0.2), _run(0.38), _run(0.6)]

    levels = make_levels(VIT, trials, repeat)
    assert repeated == [("constant", 1)]
    assert [level.target for level in levels] == [0.38]


def test_a_fixed_target_needs_no_runs():
    levels = make_levels(BOWL, {"constant": []}, _never)
    assert [level.target for level in levels] == [1e-6]
    trials = {name: [] for name in ("constant", "natural_gradient_1_over_sqrt_t")}
    assert num_targets(BOWL, trials) == 0


@pytest.fixture(scope="module")
def levels():
    """Of a race in which each trajectory's only setting ends with its own level."""
    ends = {
        "constant": (8.0, 7.0),
        "cosine": (6.0, 6.0),
        "natural_gradient": (5.0, 3.0),
        "natural_gradient_1_over_sqrt_t": (4.0, 2.0),
        HORIZON[0]: (1.5, 1.5),
        HORIZON[1]: (1.0, 1.0),
    }
    runs, repeated = {name: [[_run(*levels)]] for name, levels in ends.items()}, []

    def repeat(name, index):
        repeated.append(name)
        return runs[name][index]

    made = {level.name: level for level in make_levels(VIT, runs, repeat)}
    # What two levels share is measured once.
    assert len(repeated) == num_targets(VIT, runs) == 5
    return made


def test_every_level_has_the_target_that_its_title_says(levels):
    assert {name: level.target for name, level in levels.items()} == {
        "constant": 8,
        "cosine": 6,
        "claim": 5,
        "claim_sqrt": 5,
        "late": 3,
        "late_sqrt": 3,
        "horizon": 1,
    }


def test_the_denominators_are_the_hits_of_the_right_rivals(levels):
    for name in ("claim", "late"):
        assert levels[name].references == ALONE
    for name in ("claim_sqrt", "late_sqrt"):
        assert levels[name].references == SQRT
        assert levels[name].reference(METHODS["fgo_averaged"]) == SQRT["averaged"]
    assert set(levels["horizon"].references.values()) == {HORIZON[1]}  # the better of the two


def test_a_level_holds_its_references_and_comes_back_from_json(levels):
    for level in levels.values():
        rivals = {*level.references.values(), "fgo", "fgo_averaged", "constant"}
        assert all(level.has(METHODS[name]) for name in rivals)
        assert Level(**dataclasses.asdict(level)) == level


def test_a_level_without_its_reference_is_left_out():
    trials = {"constant": [[_run(2.0)]], "natural_gradient": [[_run(1.0)]]}
    levels = make_levels(VIT, trials, lambda name, index: trials[name][index])
    assert [level.name for level in levels] == ["constant", "claim", "late"]


def test_where_a_hit_must_last_the_late_target_is_one_that_lasts():
    steps = np.arange(1, 17)
    curve = np.r_[np.full(14, 9.0), 3.0, 1.0]
    run = Curves(steps, curve, curve, curve, {}, {}, 0.0)
    trials = {"constant": [[run]], "natural_gradient": [[run]]}
    made = make_levels(BOWL, trials, lambda name, index: [run])
    assert {level.name: level.target for level in made} == {"fixed": 1e-6, "claim": 1e-6, "late": 3}
