"""The triggers at a glance, and the picture of them."""

import json

import numpy as np

from benchmarks.report import field, regrets
from benchmarks.runs.store import plain
from benchmarks.studies import which_trigger
from tests.benchmarks.planted_study import later_is_better, planted


def test_triggers_at_a_glance():
    held = later_is_better("claim")
    content = json.loads(
        json.dumps(plain({"tasks": {"quadratic_bowl": which_trigger.table_of(held)}}))
    )
    row, again = regrets.rows(content)
    assert row[:4] == ("quadratic_bowl", "claim", "last", "0.55 [0.55, 0.90]")
    assert row[4:7] == ("0.50 [0.48, 0.70]", "0.49 [0.45, 0.90]†", "0.40 [0.25, 0.60]")
    # Over 36, 49 and 90, seed by seed.
    assert row[7:] == ("88%", "+12% [+0%, +22%]", "angle +67%")
    # The only rival misses the level there.
    assert again[1:4] == ("claim", "averaged", "0.68 [0.65, 1.00]")
    assert again[-1] == "-"
    first, _ = regrets.sentences(content)
    assert first == (
        "Regret, level claim, last weights, median over 1 task: earliest times -2%, fgo +12%, "
        "angle +67%."
    )
    content["tasks"]["quadratic_bowl"]["evidence"] = False
    assert not regrets.rows(content)
    assert not regrets.sentences(content)


def test_the_picture_shows_the_triggers_beside_the_oracle():
    table = json.loads(json.dumps(plain(which_trigger.table_of(planted("claim")))))
    figure = field.draw("quadratic_bowl", table, "claim")
    raw, averaged = figure.subfigs[1].axes
    for axis, ratio in ((raw, 0.55), (averaged, 0.675)):
        lines = {line.get_label(): line.get_xydata() for line in axis.lines}
        np.testing.assert_allclose(lines["default triggers"], [[30, ratio]])
        np.testing.assert_allclose(lines["own decay"], [[1, 0.5], [3, 0.7]])
        np.testing.assert_allclose(lines["decay x 4"], [[1, 0.4]])
    dimension = figure.subfigs[0].axes[0]
    assert {line.get_label() for line in dimension.lines} >= {"median, last", "median, averaged"}
    table["levels"]["claim"]["raw"]["over_reference"]["default"]["median"] = None
    missed = field.draw("quadratic_bowl", table, "claim").subfigs[1].axes[0]
    (star,) = (line for line in missed.lines if line.get_label() == "default triggers")
    np.testing.assert_allclose(star.get_xydata(), [[30, field.TOP]])
