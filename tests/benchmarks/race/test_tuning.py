"""Settings that were committed before stay where their targets do; others are tuned shortly."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.methods import METHODS
from benchmarks.race import tuning
from benchmarks.race.levels import ADAM, ALONE, Level
from benchmarks.runs.training import Curves
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


@pytest.mark.parametrize(
    ("best", "tried", "at_edge"),
    [(0.008, (4, 8, 16), False), (0.032, (4, 8, 16, 32, 64), False), (0.002, (2, 4, 8, 16), True)],
)
def test_short_tuning_goes_on_while_the_best_rate_lies_at_an_end(
    best, tried, at_edge, tmp_path, monkeypatch
):
    task, asked = get_task("char_gpt"), []

    def run(task, method, setting, seed, directory):
        asked.append(seed)
        steps = np.arange(task.eval_every, task.num_steps + 1, task.eval_every)
        # The further from the best rate, the later it is below the target for good.
        late = 300 * (1 + abs(np.log2(setting["learning_rate"] / best)))
        values = np.where(steps >= late, 1.0, 3.0)
        return Curves(steps, values, values, values, {}, {}, 0.0)

    monkeypatch.setattr(tuning, "run", run)
    own = {"chosen": {"claim": {"learning_rate": 0.008}}}
    level = dataclasses.asdict(Level("constant", "Adam's end", 2.0, ADAM))
    tuned = {"levels": {"constant": level}, "methods": {"natural_gradient": own}}
    found = tuning.tuned_shortly(task, METHODS["mousse"], tuned, tmp_path)
    rates = [trial["hyperparameters"]["learning_rate"] for trial in found["trials"]]
    assert rates == pytest.approx([rate / 1000 for rate in tried])
    assert found["chosen"] == {"constant": {"learning_rate": best}}
    assert found["at_edge"] == {"constant": at_edge}
    assert found["seeds"] == [100]
    assert set(asked) == {100}
