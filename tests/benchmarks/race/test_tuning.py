"""Settings that were committed before stay where their targets do."""

import dataclasses
import json

import pytest

from benchmarks.race import tuning
from benchmarks.race.levels import ADAM, ALONE, Level
from benchmarks.tasks import get_task

TASK = get_task("digits_vit")
OLD, NEW = Level("constant", "an old level", 0.3, ADAM), Level("late", "a new level", 0.1, ALONE)


@pytest.fixture
def committed(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "RESULTS", tmp_path)
    content = {
        "num_steps": TASK.num_steps,
        "data": TASK.digest,
        "levels": {"constant": dataclasses.asdict(OLD)},
        "methods": {"muon": {"chosen": {"constant": {"learning_rate": 0.1}}}},
    }
    (tmp_path / "digits_vit.json").write_text(json.dumps(content))
    return content["methods"]


def test_a_new_level_keeps_what_was_tuned_for_the_others(committed):
    assert tuning._with_committed(TASK, [OLD, NEW]) == ([OLD, NEW], committed)


def test_methods_tuned_alone_get_the_levels_that_are_there(committed):
    levels, kept = tuning._with_committed(TASK, [NEW])
    assert [level.name for level in levels] == ["late", "constant"]
    assert kept == committed


def test_another_target_asks_for_everything_anew(committed):
    del committed
    moved = dataclasses.replace(OLD, target=0.2)
    assert tuning._with_committed(TASK, [moved, NEW]) == ([moved, NEW], {})
    longer = dataclasses.replace(TASK, num_steps=2 * TASK.num_steps)
    assert tuning._with_committed(longer, [OLD]) == ([OLD], {})
