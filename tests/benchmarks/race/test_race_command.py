"""The command line at a tiny scale."""

import json

from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.race import grids, picture, tuning
from benchmarks.tasks import TASKS, get_task

BOWL = get_task("quadratic_bowl").shortened(20)


def test_the_command_line_lists_what_there_is():
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0, result.output
    for name in [*TASKS, "natural_gradient_two_step", "fgo_averaged"]:
        assert name in result.output


def test_the_command_line_names_an_unknown_method():
    result = CliRunner().invoke(main, ["race", "quadratic_bowl", "--methods", "adamw9"])
    assert result.exit_code == 2
    assert "no method 'adamw9'" in result.output
    result = CliRunner().invoke(main, ["race", "quadratic_bowl", "--methods", ","])
    assert "no method ''; there are " in result.output


def test_a_folder_that_is_none_is_refused_before_the_runs(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for command in (["race", "quadratic_bowl"], ["ablation", "quadratic_bowl"], ["memory"]):
        result = CliRunner().invoke(main, [*command, "--output", str(path)])
        assert result.exit_code == 2
        assert "is a file" in result.output


def test_a_race_without_settings_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "RESULTS", tmp_path)
    result = CliRunner().invoke(main, ["race", "digits_vit", "--methods", "constant"])
    assert result.exit_code == 1
    assert "--tune" in result.output


def test_a_micro_race_from_tuning_to_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "RESULTS", tmp_path / "tuned")
    monkeypatch.setattr(grids, "RACE_SEEDS", (0, 1, 2))
    monkeypatch.setattr(grids, "FEW_RACE_SEEDS", (0, 1))
    monkeypatch.setitem(TASKS, "quadratic_bowl", lambda: BOWL)
    get_task.cache_clear()
    try:
        command = ["race", "quadratic_bowl", "--methods", "constant_averaged,sgd_momentum"]
        options = ["--output", str(tmp_path)]
        result = CliRunner().invoke(main, [*command, "--tune", *options])
        monkeypatch.setattr(picture, "draw", lambda *args: None)  # one picture is enough
        fewer = CliRunner().invoke(main, [*command, "--seeds", "2", "--output", str(tmp_path)])
    finally:
        get_task.cache_clear()
    assert result.exit_code == 0, result.output
    assert fewer.exit_code == 0, fewer.output
    assert not json.loads((tmp_path / "quadratic_bowl-quick.json").read_text())["evidence"]
    # How long it takes is said before, and how far it is, though this is no terminal.
    words = " ".join(result.output.split())
    assert words.startswith("Tuning: ")
    assert "min on two idle cores" in words
    assert "race quadratic_bowl: 100%, " in words
    assert "steps to target" in result.output
    assert (tmp_path / "quadratic_bowl.png").stat().st_size > 10_000
    stored = json.loads((tmp_path / "quadratic_bowl.json").read_text())
    assert stored["evidence"]
    rows = stored["levels"]["fixed"]["methods"]
    assert set(rows) == {"constant", "constant_averaged", "sgd_momentum"}
    # The first is in the claim's tables, so it has more seeds; ratios are of those both have.
    assert [len(rows[name]["own_hits"]) for name in rows] == [3, 2, 2]
    assert [rows[name]["seeds"] for name in rows] == [[0, 1, 2], [0, 1], [0, 1]]
    # Twenty steps reach no 1e-6: a miss is null, and beyond T in words.
    assert rows["constant"]["steps"]["median"] is None
    assert rows["constant"]["reached"] == 0
    assert rows["constant_averaged"]["seconds_ratios"]["constant"]["median"] is None
    assert stored["at_edge"].keys() == rows.keys()
    assert "> 20" in result.output
    assert stored["environment"]["jax"]
    tuned = json.loads((tmp_path / "tuned" / "quadratic_bowl.json").read_text())
    assert all(
        len(entry["trials"]) == grids.num_trials(BOWL) for entry in tuned["methods"].values()
    )
