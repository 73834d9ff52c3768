"""The rows of a race, on curves drawn by hand."""

import dataclasses

import numpy as np

from benchmarks.methods import METHODS
from benchmarks.race import outcome
from benchmarks.race.hold import Entry, Race
from benchmarks.race.levels import ALONE, Level
from benchmarks.runs import transitions
from benchmarks.runs.timing import PHASES, StepTime
from benchmarks.runs.training import Curves
from benchmarks.tasks import get_task

# Hits last to the very end, evaluations are not smoothed, T = 100.
TASK = dataclasses.replace(get_task("quadratic_bowl").shortened(100), eval_every=10)
STEPS = np.arange(10, 101, 10)
TIMES = {
    "constant": StepTime(1.0, 1.0),
    "natural_gradient": StepTime(3.0, 3.0),
    "natural_gradient_averaged": StepTime(3.5, 3.5),
    **{
        f"{name}:{phase}": StepTime(1.0 + k, 1.0 + k)
        for name in ("fgo", "fgo_averaged")
        for k, phase in enumerate(PHASES)
    },
}


def _run(hit, phases=None):
    """At 4 and then at 1 from step `hit` on."""
    curve = np.where(hit <= STEPS, 1.0, 4.0)
    telemetry = {}
    if phases is not None:
        # A run that never hits has never left re-ask here.
        late = (50, 1) if np.isfinite(hit) else (-1, 0)
        telemetry = {"phase": np.asarray(phases, float)}
        for phase, (start, cause) in zip(("reask", "execution"), ((20, 1), late), strict=True):
            telemetry |= {
                f"started/{phase}": STEPS * 0 + start,
                f"cause/{phase}": STEPS * 0 + cause,
            }
    test = {"raw": {"loss": 0.5}, "averaged": {"loss": 0.5}}
    return Curves(STEPS, curve, curve, curve, telemetry, test, 0.0)


def _race():
    phases = [0] * 2 + [1] * 3 + [2] * 5  # from step 20 and from step 50 on
    hits = {
        "constant": (80, np.inf),
        "natural_gradient": (60, 40),
        "natural_gradient_averaged": (30, 20),
        "fgo": (60, 40),
        "fgo_averaged": (30, 20),
    }
    runs = {
        name: {
            seed: _run(hit, phases if name.startswith("fgo") else None)
            for seed, hit in enumerate(both)
        }
        for name, both in hits.items()
    }
    entries = {
        name: Entry(TASK, METHODS[name], {"learning_rate": 0.1}, kept)
        for name, kept in runs.items()
    }
    level = Level("claim", "a level", 2.0, ALONE)
    return Race(TASK, [level], {"claim": entries}, TIMES, True, {"methods": {}})


def test_seconds_are_compared_with_adam_and_with_the_refinement_by_the_same_weights():
    race = _race()
    row = outcome.row(race, race.levels[0], "fgo")
    # 20 steps of one second, 30 of two, 10 of three; 20 and 20.
    np.testing.assert_allclose(row["seconds"]["values"], [110, 60])
    ratios = row["seconds_ratios"]
    assert list(ratios) == ["constant", "natural_gradient"]
    # Adam misses with the second seed: the seconds of all its 100 steps.
    np.testing.assert_allclose(ratios["constant"]["values"], [110 / 80, 60 / 100])
    np.testing.assert_allclose(ratios["natural_gradient"]["values"], [110 / 180, 60 / 120])
    averaged = outcome.row(race, race.levels[0], "fgo_averaged")["seconds_ratios"]
    assert list(averaged) == ["constant", "natural_gradient_averaged"]
    np.testing.assert_allclose(averaged["natural_gradient_averaged"]["values"], [40 / 105, 20 / 70])


def test_ratios_are_of_the_seeds_that_both_methods_have():
    race = _race()
    del race.entries["claim"]["fgo"].runs[0]
    row = outcome.row(race, race.levels[0], "fgo")
    assert row["seeds"] == [1]
    np.testing.assert_array_equal(row["own_hits"], [40])
    np.testing.assert_array_equal(row["ratio"]["values"], [1.0])
    np.testing.assert_allclose(row["seconds_ratios"]["constant"]["values"], [60 / 100])
    race.entries["claim"]["fgo"].runs[1] = _run(20, [0] * 2 + [1] * 8)
    assert outcome.ladder(race, race.levels[0])["ratios"]["fgo"][-1] == 0.5


def test_a_row_says_when_its_phases_began_and_what_began_them():
    race = _race()
    entry = race.entries["claim"]["fgo"]
    entry.runs[1] = _run(np.inf, [0] * 2 + [1] * 8)
    row = outcome.row(race, race.levels[0], "fgo")
    np.testing.assert_array_equal(row["started"], [[20, 20], [50, np.inf]])
    assert transitions.by_trigger(row) == 1
    assert "causes" not in outcome.row(race, race.levels[0], "natural_gradient")


def test_the_area_is_the_mean_of_the_curve_that_judges():
    race = _race()
    row = outcome.row(race, race.levels[0], "natural_gradient")
    np.testing.assert_allclose(row["area"]["values"], [(5 * 4 + 5) / 10, (3 * 4 + 7) / 10])


def test_every_rung_of_a_ladder_is_over_the_reference_of_the_same_weights():
    race = _race()
    stored = outcome.as_json(race)
    climbed = stored["ladders"]["claim"]
    assert climbed["references"] == ALONE
    assert climbed["targets"][-1] == 2.0
    assert {climbed["ratios"][name][-1] for name in ALONE.values()} == {1.0}
    assert climbed["ratios"]["fgo"][-1] == 1.0
    # One of Adam's two runs misses, and a median of two never averages a miss away.
    assert climbed["ratios"]["constant"][-1] is None
    assert stored["ladder"] == climbed
