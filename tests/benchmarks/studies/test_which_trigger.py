"""Triggers against the best switch times of a grid, on planted runs."""

import numpy as np
import pytest

from benchmarks import statistics
from benchmarks.studies import which_trigger
from benchmarks.tasks import TASKS, get_task
from tests.benchmarks.planted_study import later_is_better, planted


@pytest.mark.parametrize("name", TASKS)
def test_the_grid_of_times_keeps_the_protocols_limits(name):
    task = get_task(name)
    pairs = which_trigger.fixed_times(task)
    assert len(pairs) >= 9
    assert len(set(pairs)) == len(pairs)
    for first, second in pairs:
        assert task.warmup_steps <= first
        assert second - first >= which_trigger.SHORTEST
        assert second <= which_trigger.LATEST * task.num_steps
    told = [v for v in which_trigger.variants(task) if v.part == "fixed"]
    lengths = () if name in which_trigger.ONE_LENGTH else which_trigger.LENGTHS
    count = len(pairs) + len(lengths) * len(dict(pairs))
    assert len({v.name for v in told}) == len(told) == count
    assert {v.decay for v in told} == {1.0, *lengths}


def test_regret_is_paired_with_the_best_times_of_the_grid():
    table = which_trigger.table_of(planted())["levels"]["planted"]["raw"]
    assert table["best"] == "at 1, 2"
    row = table["rows"]["fgo"]
    np.testing.assert_allclose(row["excess"]["values"], [0.1, 0.1, 0.5])
    assert row["excess"]["median"] == pytest.approx(0.1)
    np.testing.assert_array_equal(row["started"], [[30] * 3, [np.inf] * 3])
    np.testing.assert_allclose(table["grid"]["at 3, 4"]["excess"]["values"], [-0.25, 0.4, np.inf])
    assert statistics.middle(table["grid"]["at 1, 2"]["excess"]["values"]) == 0
    texts = list(which_trigger.cells({"num_steps": 100}, table))
    assert texts[0][:5] == ("fgo", "30", "never", "0/3", "55 [44, 90]")
    assert {len(text) for text in texts} == {len(which_trigger.HEADINGS)}


def test_the_best_times_have_the_lowest_median_of_the_ratios_that_are_shown():
    held = later_is_better()
    table = which_trigger.table_of(held)["levels"]["planted"]["raw"]
    assert table["best"] == which_trigger.best_fixed(held, held.levels[0], "raw") == "at 3, 4"
    assert table["earliest"] == "at 1, 2"
    medians = {name: r["median"] for name, r in table["over_reference"].items()}
    assert medians["oracle"] <= medians["best"] < medians["earliest"]


def test_head_room_is_what_the_oracle_saves_of_the_constant_rate():
    table = which_trigger.table_of(planted())["levels"]["planted"]["raw"]
    assert table["oracle"] == "longer"
    ratios = table["over_reference"]
    # The reference misses the target once, and T stands for its hit.
    np.testing.assert_allclose(ratios["default"]["values"], [0.55, 0.55, 0.9])
    np.testing.assert_allclose(ratios["best"]["values"], [0.5, 0.5, 0.6])
    np.testing.assert_allclose(ratios["oracle"]["values"], [0.25, 0.4, 0.6])
    text = which_trigger.caption(table)
    assert "Of what the best times save they realise 90%" in text
    ratios["default"]["median"] = np.inf
    assert "realise" not in which_trigger.caption(table)


def test_the_field_is_the_median_over_seeds_of_what_the_default_measured():
    found = which_trigger.table_of(planted())["field"]["raw"]
    kept = found["steps"]
    assert kept[0] == 1
    assert kept[-1] == 100
    assert len(kept) == which_trigger.KEPT
    for name in which_trigger.SIGNALS:
        known = kept > 5
        np.testing.assert_allclose(found[name]["median"][known], 55 + kept[known])
        np.testing.assert_allclose(found[name]["low"][known], 49.5 + kept[known])
        assert np.isnan(found[name]["median"][~known]).all()
