"""Studies of triggers and of parts: what is declared, counted and written."""

import contextlib
import copy
import dataclasses
import json

import click
import jax
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.methods import METHODS
from benchmarks.race.levels import Level
from benchmarks.report import page
from benchmarks.report.page import read
from benchmarks.runs.store import plain
from benchmarks.studies import commands, parts, study, which_trigger
from benchmarks.studies.study import Variant
from benchmarks.tasks import get_task
from tests.benchmarks.planted_study import BOWL, curves, planted


@pytest.mark.parametrize("name", ["quadratic_bowl", "digits_autoencoder"])  # no net, and one
def test_every_variant_of_the_ablation_is_built(name, small_autoencoder):
    task = get_task(name) if name == "quadratic_bowl" else small_autoencoder
    variants = parts.variants(task)
    wanted = {"default", "trigger", "probe", "momentum", "cut", "decay"}
    count = 29
    if name != "quadratic_bowl":
        wanted, count = wanted | {"switch"}, 31
    assert len({v.name for v in variants}) == len(variants) == count
    assert {v.part for v in variants} == wanted
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.eval_shape(task.batch, task.data(0), jax.random.key(0), 0)
    for variant in {v.method.name: v for v in variants}.values():
        tx = variant.method.build(task, {"learning_rate": 0.1, **variant.setting})
        extras = {"batch": batch} if variant.method.needs_batch else {}

        def first(params, tx=tx, **extras):
            return tx.update(params, tx.init(params), params, **extras)

        jax.eval_shape(first, params, value=jax.ShapeDtypeStruct((), np.float32), **extras)


def test_each_reading_has_runs_at_the_rate_tuned_for_it(tmp_path, monkeypatch):
    task = dataclasses.replace(BOWL, num_steps=40, eval_every=20)
    asked, totals = [], []

    def run(task, method, setting, seed, **kwargs):
        names = ("learning_rate", "decay_ratio", "decay_onset")
        asked.append(tuple(setting.get(name) for name in names))
        return curves(round(1000 * setting["learning_rate"]), (1, 2), (1, 1))

    @contextlib.contextmanager
    def bar(name, total):
        totals.append(total)
        yield (lambda text: None), (lambda steps: None)

    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(study, "progress_bar", bar)
    settings: dict = {("planted", weights): {"learning_rate": 0.05} for weights in study.READINGS}
    variants = [Variant("fgo", METHODS["fgo"]), Variant("half", METHODS["fgo"], decay=0.5)]
    level = Level("planted", "a planted level", 0.5, {"raw": "constant", "averaged": "constant"})
    plan = study.Plan([level], {"raw": 0.02, "averaged": 0.03}, settings)
    held = study.hold(task, variants, plan, [0, 1], tmp_path, is_evidence=True)
    ours = [(0.02, 1.0, 0.0), (0.02, 0.5, 0.0), (0.03, 1.0, 1.0), (0.03, 0.5, 1.0)]
    alone = [(0.05, None, None)]
    assert sorted(asked, key=str) == sorted([*ours, *ours, *4 * alone], key=str)
    assert totals == [len(asked) * task.num_steps]
    for weights in study.READINGS:
        np.testing.assert_array_equal(held.reference_hits(level, weights), 50)
    for weights, step in (("raw", 20), ("averaged", 30)):
        np.testing.assert_array_equal(held.hits(level, weights, "fgo"), step)


def test_tables_of_other_tasks_stay(tmp_path):
    path = tmp_path / "triggers.json"
    study.merge(path, "rule", "one", {"value": 1.0})
    study.merge(path, "rule", "two", {"value": np.inf})
    stored = json.loads(path.read_text())
    assert stored["tasks"] == {"one": {"value": 1.0}, "two": {"value": None}}


@pytest.mark.parametrize(("kind", "name"), [(which_trigger, "triggers"), (parts, "ablation")])
def test_the_page_shows_from_the_file_what_the_terminal_does(kind, name, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "DEFAULT", "at 3, 4")
    table = kind.table_of(planted("claim"))
    study.merge(tmp_path / f"{name}.json", kind.RULE, "quadratic_bowl", table)
    page.write(read(tmp_path), tmp_path / "page.html")
    made = (tmp_path / "page.html").read_text()
    assert "not as this revision" not in made
    assert made.count('href="field-quadratic_bowl.png"') == (kind is which_trigger)
    assert (tmp_path / "field-quadratic_bowl.png").exists() == (kind is which_trigger)
    for text in ("a planted level", "55 [44, 90]", "50 [40, 60]", "70 [30, &gt; 100]"):
        assert (text in made) == (kind is parts or not text.startswith("70")), text


@pytest.mark.parametrize("kind", [which_trigger, parts])
def test_a_row_run_later_is_the_row_of_the_whole_study(kind, monkeypatch):
    monkeypatch.setattr(parts, "DEFAULT", "at 3, 4")
    held = planted("claim")
    whole = json.loads(json.dumps(plain(kind.table_of(held))))
    less = copy.deepcopy(whole)
    for weights in study.READINGS:
        del less["levels"]["claim"][weights]["rows"]["fgo_by_angle"]
    alone = dataclasses.replace(held, variants={"fgo_by_angle": held.variants["fgo_by_angle"]})
    found = json.loads(json.dumps(plain(study.with_rows(kind, less, alone))))
    for weights in study.READINGS:
        del found["levels"]["claim"][weights]["rows"]["fgo_by_angle"]["environment"]
    assert found == whole


@pytest.mark.parametrize("given", [["--seeds", "6"], ["--tuning"], ["--steps", "150"]])
def test_rows_are_added_to_a_table_of_the_same_seeds_and_targets_alone(given, monkeypatch):
    monkeypatch.setattr(study, "hold", lambda *args, **known: pytest.fail("nothing shall run"))
    options = ["--methods", "fgo_by_angle", *given]
    result = CliRunner().invoke(main, ["triggers", "quadratic_bowl", *options])
    assert result.exit_code == 2
    assert "no table of triggers has these targets and seeds" in result.output


def test_a_task_without_a_rate_for_fgo_says_what_to_do(monkeypatch):
    level = {"name": "claim", "title": "", "target": 1.0, "references": {}, "rows": None}
    tuned = {"levels": {"claim": level}, "methods": {"constant": {}}}
    monkeypatch.setattr(commands.tuning, "load", lambda task: tuned)
    result = CliRunner().invoke(main, ["triggers", "digits_vit"])
    assert result.exit_code == 1
    assert "no committed rate for fgo" in result.output


@pytest.mark.parametrize("name", ["triggers", "ablation"])
def test_the_commands_write_a_look_beside_the_runs(name, tmp_path, monkeypatch, cheap_refinement):
    module = {"triggers": which_trigger, "ablation": parts}[name]
    task = dataclasses.replace(get_task("quadratic_bowl"), eval_every=25)
    monkeypatch.setattr(commands, "get_task", lambda name: task)
    every = module.variants(task.shortened(150))
    wanted = ("fgo", "fgo_by_angle", "default")
    chosen = [v for v in every if v.name in wanted or v.part == "fixed"][:4]
    monkeypatch.setattr(module, "variants", lambda task: chosen)
    monkeypatch.setattr(commands, "RESULTS", tmp_path / "results")
    options = ["--steps", "150", "--seeds", "2", "--tuning", "--output", str(tmp_path)]
    result = CliRunner().invoke(main, [name, "quadratic_bowl", *options])
    assert result.exit_code == 0, result.output
    assert "no evidence" in result.output
    assert not (tmp_path / "results").exists()
    table = json.loads((tmp_path / f"{name}-quick.json").read_text())["tasks"]["quadratic_bowl"]
    assert table["seeds"] == [100, 101]
    assert table["num_steps"] == 150
    reading = table["levels"]["quick"]["averaged"]
    assert set(reading["rows"]) | set(reading.get("grid", {})) == {v.name for v in chosen}
    again = CliRunner().invoke(main, [name, "quadratic_bowl", *options])
    assert again.exit_code == 0


@pytest.mark.parametrize(
    ("options", "seeds", "is_evidence"),
    [
        ([], (0, 1, 2, 3, 4), True),
        (["--seeds", "4"], (0, 1, 2, 3), False),
        (["--seeds", "6"], (0, 1, 2, 3, 4, 5), True),
        (["--tuning"], (100, 101, 102), False),
        (["--steps", "150"], (0, 1, 2, 3, 4), False),
    ],
)
def test_a_study_is_evidence_on_the_first_seeds_of_the_race(
    options, seeds, is_evidence, monkeypatch
):
    def hold(task, variants, plan, chosen, output, **known):
        assert (chosen, known["is_evidence"]) == (seeds, is_evidence)
        raise click.ClickException("far enough")

    monkeypatch.setattr(study, "hold", hold)
    result = CliRunner().invoke(main, ["triggers", "quadratic_bowl", *options])
    assert "far enough" in result.output, result.output
