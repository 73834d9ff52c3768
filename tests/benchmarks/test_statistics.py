"""Targets, hits and ratios on curves drawn by hand."""

import numpy as np
import pytest

from benchmarks import statistics

NAN, INF = np.nan, np.inf
STEPS = 10 * np.arange(1, 11)  # T = 100: 5 % of it is half an evaluation


def test_smooth_is_the_trailing_mean_and_unknown_before_the_window_is_full():
    out = statistics.smooth(np.arange(6.0), 3)
    np.testing.assert_allclose(out, [NAN, NAN, 1, 2, 3, 4])
    np.testing.assert_allclose(statistics.smooth([1.0], 5), [NAN])


def test_smooth_spreads_a_failed_evaluation_over_its_window_only():
    out = statistics.smooth([1, NAN, 1, 1, 1], 2)
    np.testing.assert_allclose(out, [NAN, NAN, NAN, 1, 1])


@pytest.mark.parametrize(
    ("values", "hold", "expected"),
    [
        ([9, 9, 1, 1, 9, 9, 9, 9, 9, 9], 0.1, 30),  # held one evaluation later
        ([9, 9, 1, 9, 9, 1, 1, 9, 9, 9], 0.1, 60),  # a dip does not count
        ([9, 9, 1, 9, 1, 9, 9, 9, 9, 9], 0.2, 30),  # only the later look decides
        ([9] * 9 + [1], 0.1, 100),  # the run ends at the target
        ([9] * 8 + [1, 9], 0.5, INF),  # and one that leaves it before its end does not
        ([9, 9, 2, 2, 9, 9, 9, 9, 9, 9], 0.1, 30),  # at the target is reached
        ([9, NAN, 1, NAN, 9, 1, 1, 9, 9, 9], 0.1, 60),  # a failed evaluation holds nothing
        ([NAN] * 10, 0.1, INF),
        ([9, 1, 1, 9, 1, 1, 1, 1, 1, 1], None, 50),  # to the very end
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 9], None, INF),
    ],
)
def test_hit(values, hold, expected):
    found = statistics.hit(STEPS, np.asarray(values, float), 2.0, hold=hold, num_steps=100)
    assert found == expected


def test_a_run_ends_with_the_mean_of_its_last_eighth():
    assert statistics.final_level(np.r_[np.zeros(70), np.full(10, 3.0)]) == 3
    assert statistics.final_level([1.0, 1.0, NAN]) == INF


def test_middle_never_averages_a_miss_away():
    assert statistics.middle([1, 3, INF]) == 3
    assert statistics.middle([1, INF]) == INF
    assert statistics.middle([1, 3]) == 2


@pytest.mark.parametrize(("seeds", "left_out"), [(3, 0), (5, 0), (7, 1)])
def test_what_the_interval_of_few_seeds_covers(seeds, left_out):
    """The median lies outside exactly where too few values are on one side of it."""
    ordered = np.arange(float(seeds))
    low, high = statistics.interval(ordered)
    assert (low, high) == (left_out, seeds - 1 - left_out)
    draws = np.sort(np.random.default_rng(3).standard_normal((20_000, seeds)))
    covered = np.mean((draws[:, int(low)] <= 0) & (draws[:, int(high)] >= 0))
    assert abs(covered - statistics.coverage(seeds)) < 4 * (0.25 / 20_000) ** 0.5
    assert statistics.coverage(5) == 1 - 2 / 2**5


def test_interval_holds_the_median_and_survives_misses():
    low, high = statistics.interval([1, 2, 3, INF, INF])
    assert low == 1
    assert high == INF
    assert statistics.interval([5.0] * 5) == (5, 5)


def test_interval_covers_the_median_as_often_as_it_says():
    # Five seeds: the bootstrap interval of a median runs from the least to the largest
    # or nearly so, and two-sided coverage of the order statistics is 1 - 2/32 = 94 %.
    rng = np.random.default_rng(0)
    covered = 0
    for sample in rng.standard_normal((200, 5)):
        low, high = statistics.interval(sample)
        covered += low <= 0 <= high
    # Budget: 200 draws, three standard errors of a share of .94 are .05.
    assert 0.94 - 0.05 <= covered / 200 <= 1


def test_ratios_are_paired_and_a_reference_that_misses_counts_as_the_horizon():
    ratios = statistics.paired_ratios([50, 80, INF, 40], [100, INF, 50, 80], 100)
    np.testing.assert_allclose(ratios, [0.5, 0.8, INF, 0.5])


def test_the_best_trial_has_the_fewest_steps_and_then_the_lowest_end():
    trials = [
        {"hits": [50, 60], "finals": [1.0, 1.0]},
        {"hits": [40, INF], "finals": [0.1, 0.1]},  # a miss makes the median a miss
        {"hits": [50, 60], "finals": [0.5, 0.9]},
    ]
    assert statistics.best_trial(trials) == 2
    assert statistics.best_trial([{"hits": [INF], "finals": [f]} for f in (3, INF, 2)]) == 2


def test_the_ladder_descends_to_the_hardest_target():
    curve = np.geomspace(8, 1, 41)
    rungs = statistics.ladder([curve, curve], 1, 1.0)
    assert len(rungs) == 9
    assert rungs[0] == pytest.approx(curve[10])
    assert rungs[-1] == pytest.approx(1)
    assert np.all(np.diff(rungs) < 0)
    np.testing.assert_array_equal(statistics.ladder([curve], 1, 20.0), [20.0])


def test_the_ladder_of_runs_too_short_to_smooth_has_one_rung():
    np.testing.assert_array_equal(statistics.ladder([np.ones(3)], 5, 0.5), [0.5])


def test_what_a_run_stays_below_and_what_lies_under_it():
    curve = np.r_[np.full(56, 5.0), [3.0, 1.0, 4.0, 1.0, 2.0, 1.0, 1.0, 1.0]]
    assert statistics.kept_level(curve) == 4
    assert statistics.hit(np.arange(64), curve, 4.0, hold=None, num_steps=64) == 56
    assert statistics.area([1.0, 2.0, 6.0]) == 3
    assert statistics.kept_level([1.0, NAN]) == statistics.area([1.0, NAN]) == INF
