"""Studies of triggers and of parts: what is declared, counted and written."""

import dataclasses
import json

import click
import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import fgo_jax as fgo
from benchmarks import statistics as evidence
from benchmarks.__main__ import main
from benchmarks.methods import METHODS, STUDIED
from benchmarks.methods import protocol as phases
from benchmarks.race.levels import Level
from benchmarks.report import field, page, regrets
from benchmarks.report.reading import read
from benchmarks.runs import transitions
from benchmarks.runs.store import plain
from benchmarks.runs.training import Curves, train
from benchmarks.studies import commands as study_commands
from benchmarks.studies import parts as ablation
from benchmarks.studies import study
from benchmarks.studies import which_trigger as triggers
from benchmarks.studies.study import Study, Variant
from benchmarks.tasks import TASKS, get_task

BOWL = get_task("quadratic_bowl").shortened(60)
RIVALS = [name for name in METHODS if METHODS[name].by_request and METHODS[name].weights == "raw"]


@pytest.fixture
def cheap_refinement(monkeypatch):
    """Adam in the refinement's place: what is tested here does not depend on it."""
    monkeypatch.setattr(phases, "kronecker_fisher", lambda task: optax.scale_by_adam())
    monkeypatch.setattr("benchmarks.runs.training._programs", {})


def test_rivals_race_only_where_they_are_asked_for():
    assert len(RIVALS) == 8
    result = CliRunner().invoke(main, ["list"])
    for name in RIVALS:
        assert name in result.output
    from benchmarks.__main__ import _chosen

    assert not {m.name for m in _chosen(BOWL, None)} & set(RIVALS)
    # Single transformations have a comparison of their own.
    in_race = {m.name for m in _chosen(get_task("char_gpt"), None)}
    assert in_race >= {"constant", "muon", "natural_gradient", "fgo", "fgo_averaged"}
    assert not in_race & {"kfac", "fismo", "diagonal_fisher", "low_rank_fisher", "shampoo_power"}
    assert {m.name for m in _chosen(BOWL, "fgo_by_sasa")} == {"constant", "fgo_by_sasa"}


@pytest.mark.parametrize("name", RIVALS)
def test_only_the_trigger_and_its_probe_differ(name, cheap_refinement):
    task, hp = BOWL, {"learning_rate": 0.1}
    params = jax.eval_shape(task.init, jax.random.key(0))
    ours = jax.eval_shape(METHODS["fgo"].build(task, hp).init, params)
    theirs = jax.eval_shape(METHODS[name].build(task, hp).init, params)
    for part in ("transforms", "average", "started", "hyperparams"):
        assert getattr(ours, part) == getattr(theirs, part)
    update = METHODS[name].build(task, hp).update
    loss = jax.ShapeDtypeStruct((), np.float32)
    _, after = jax.eval_shape(update, params, theirs, params, value=loss)
    assert after == theirs


@pytest.mark.parametrize("suffix", ["", "_averaged"])
def test_rivals_decay_as_ours_do(suffix, cheap_refinement):
    task, hp = BOWL, {"learning_rate": 0.1}
    params = task.init(jax.random.key(0))

    def noise(step):
        return optax.tree.random_like(jax.random.key(step), params, jax.random.normal)

    def late_rate(name):
        tx = METHODS[name].build(task, hp)
        state = tx.init(params)
        forced = fgo.force_phase(state._replace(total_step=jax.numpy.int32(500)), "execution")
        update = jax.jit(lambda state, step: tx.update(noise(step), state, params, value=1.0)[1])
        for step in range(100):
            forced = update(forced, step)
        return float(fgo.telemetry(forced)["learning_rate"])

    ours = late_rate(f"fgo{suffix}")
    assert ours < 0.1
    assert late_rate(f"fgo_by_plateau{suffix}") == ours
    assert late_rate("fgo") < late_rate("fgo_averaged")


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_a_short_run_of_a_network_with_each_rival(name):
    task = get_task("digits_vit").shortened(60)
    curves = train(task, METHODS[name], {"learning_rate": 1e-3}, seed=100)
    assert np.isfinite(curves.raw).all()
    assert curves.raw[-1] < curves.raw[0]


def test_a_rival_ends_both_phases_with_its_state_afresh():
    # The weights shrink, bounce and settle twice; both turns must be seen again in re-ask.
    from benchmarks import rival_triggers as rivals

    adam = optax.scale_by_adam()
    tx = fgo.target_acquisition(
        1e-3, 1, acquisition=adam, refinement=adam, handover_steps=1,
        probe=rivals.weight_norm(), acquisition_trigger=rivals.bounced(),
        reask_trigger=rivals.bounced(),
    )  # fmt: skip
    norms = np.asarray([5, 4, 3, 4, 5, 4.9, 4.8, 4, 3, 4, 5, 4.9, 4.8, 4.7], np.float32)

    def step(state, norm):
        _, state = tx.update({"x": norm * 0}, state, {"x": norm})
        return state, fgo.telemetry(state)["phase"]

    _, phase = jax.jit(lambda: jax.lax.scan(step, tx.init({"x": norms[0]}), norms))()
    # Turns at 3 -> 4 and 5 -> 4.9; then at 3 -> 4 and 5 -> 4.9 again.
    np.testing.assert_array_equal(phase, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2])


def test_given_times_are_kept(cheap_refinement):
    setting = {"learning_rate": 0.1, "first": 22.0, "second": 62.0}
    task = get_task("quadratic_bowl").shortened(80)
    curves = train(task, STUDIED["fgo_at_steps"], setting, seed=100)
    # The protocol's least length of re-ask is 40 steps.
    found = transitions.of_runs([curves])
    np.testing.assert_array_equal(found["started"], [[22.0], [62.0]])
    assert transitions.by_trigger(found) == 1


@pytest.mark.parametrize("name", TASKS)
def test_the_grid_of_times_keeps_the_protocols_limits(name):
    task = get_task(name)
    pairs = triggers.fixed_times(task)
    assert len(pairs) >= 9
    assert len(set(pairs)) == len(pairs)
    for first, second in pairs:
        assert task.warmup_steps <= first
        assert second - first >= triggers.SHORTEST
        assert second <= triggers.LATEST * task.num_steps
    told = [v for v in triggers.variants(task) if v.part == "fixed"]
    lengths = () if name in triggers.ONE_LENGTH else triggers.LENGTHS
    count = len(pairs) + len(lengths) * len(dict(pairs))
    assert len({v.name for v in told}) == len(told) == count
    assert {v.decay for v in told} == {1.0, *lengths}


@pytest.mark.parametrize(
    "name",
    ["quadratic_bowl", "digits_autoencoder", pytest.param("char_gpt", marks=pytest.mark.slow)],
)
def test_every_variant_of_the_ablation_is_built(name):
    task = get_task(name)
    variants = ablation.variants(task)
    parts = {"default", "trigger", "probe", "momentum", "cut", "decay"}
    count = 29
    if name != "quadratic_bowl":
        parts, count = parts | {"switch"}, 31
    assert len({v.name for v in variants}) == len(variants) == count
    assert {v.part for v in variants} == parts
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.eval_shape(task.batch, task.data(0), jax.random.key(0), 0)
    for variant in {v.method.name: v for v in variants}.values():
        tx = variant.method.build(task, {"learning_rate": 0.1, **variant.setting})
        extras = {"batch": batch} if variant.method.needs_batch else {}
        state = jax.eval_shape(tx.init, params)
        loss = jax.ShapeDtypeStruct((), np.float32)
        jax.eval_shape(tx.update, params, state, params, value=loss, **extras)


def _curves(hit, started, causes):
    """A run that reaches 0.5 at step `hit` of 100."""
    steps = np.arange(1, 101)
    values = np.where(steps >= hit, 0.4, 0.6)
    telemetry = {}
    for index in (1, 2):
        telemetry[f"started/{index}"] = np.full(100, started[index - 1])
        telemetry[f"cause/{index}"] = np.full(100, causes[index - 1])
    for name in triggers.SIGNALS:
        telemetry[name] = np.where(steps > 5, hit + steps, np.nan)
    return Curves(steps, values, values, values, telemetry, {}, 0.0)


def _planted(name="planted"):
    task = dataclasses.replace(BOWL, num_steps=100, eval_every=1, smoothing=1)
    level = Level(name, "a planted level", 0.5, {"raw": "constant", "averaged": "constant"})
    told = STUDIED["fgo_at_steps"]
    variants = {
        "fgo": Variant("fgo", METHODS["fgo"], part="trigger"),
        "fgo_by_angle": Variant("fgo_by_angle", METHODS["fgo_by_angle"], part="trigger"),
        "at 1, 2": Variant("at 1, 2", told, {"first": 1.0, "second": 2.0}, part="fixed"),
        "at 3, 4": Variant("at 3, 4", told, {"first": 3.0, "second": 4.0}, part="fixed"),
        "longer": Variant("longer", told, {"first": 1.0, "second": 2.0}, part="fixed", decay=4.0),
    }
    runs = {
        "fgo": {s: _curves(h, (30, -1), (1, 0)) for s, h in enumerate((44, 55, 90))},
        "fgo_by_angle": {s: _curves(h, (9, -1), (1, 0)) for s, h in enumerate((60, 101, 101))},
        "at 1, 2": {s: _curves(h, (1, 2), (1, 1)) for s, h in enumerate((40, 50, 60))},
        "at 3, 4": {s: _curves(h, (3, 4), (1, 1)) for s, h in enumerate((30, 70, 101))},
        "longer": {s: _curves(h, (1, 2), (1, 1)) for s, h in enumerate((20, 40, 60))},
    }
    rates: dict[study.Weights, float] = {"raw": 0.1, "averaged": 0.1}
    own = {s: _curves(h, (-1, -1), (0, 0)) for s, h in enumerate((80, 101, 100))}
    references = {(name, weights): own for weights in study.READINGS}
    # Averaged weights take the triggers ten steps longer.
    slower = {**runs, "fgo": {s: _curves(h, (30, -1), (1, 0)) for s, h in enumerate((54, 65, 100))}}
    both: dict[study.Weights, dict] = {"raw": runs, "averaged": slower}
    return Study(task, [level], rates, variants, both, references, True)


def test_each_reading_has_runs_at_the_rate_tuned_for_it(tmp_path, monkeypatch):
    task = dataclasses.replace(BOWL, num_steps=40, eval_every=20)
    asked = []

    def run(task, method, setting, seed, **kwargs):
        names = ("learning_rate", "decay_ratio", "decay_onset")
        asked.append(tuple(setting.get(name) for name in names))
        return _curves(round(1000 * setting["learning_rate"]), (1, 2), (1, 1))

    monkeypatch.setattr(study, "run", run)
    settings: dict = {("planted", weights): {"learning_rate": 0.05} for weights in study.READINGS}
    variants = [Variant("fgo", METHODS["fgo"]), Variant("half", METHODS["fgo"], decay=0.5)]
    level = Level("planted", "a planted level", 0.5, {"raw": "constant", "averaged": "constant"})
    plan = study.Plan([level], {"raw": 0.02, "averaged": 0.03}, settings, True)
    held = study.hold(task, variants, plan, [0, 1], tmp_path)
    ours = [(0.02, 1.0, 0.0), (0.02, 0.5, 0.0), (0.03, 1.0, 1.0), (0.03, 0.5, 1.0)]
    alone = [(0.05, None, None)]
    assert sorted(asked, key=str) == sorted([*ours, *ours, *4 * alone], key=str)
    assert len(asked) == study.num_runs(plan, variants, [0, 1])
    for weights in study.READINGS:
        np.testing.assert_array_equal(study.reference_hits(held, level, weights), 50)
    for weights, step in (("raw", 20), ("averaged", 30)):
        np.testing.assert_array_equal(study.hits(held, level, weights, "fgo"), step)


def test_regret_is_paired_with_the_best_times_of_the_grid():
    table = triggers.table_of(_planted())["levels"]["planted"]["raw"]
    assert table["best"] == "at 1, 2"
    row = table["rows"]["fgo"]
    np.testing.assert_allclose(row["excess"]["values"], [0.1, 0.1, 0.5])
    assert row["excess"]["median"] == pytest.approx(0.1)
    np.testing.assert_array_equal(row["started"], [[30] * 3, [np.inf] * 3])
    np.testing.assert_allclose(table["grid"]["at 3, 4"]["excess"]["values"], [-0.25, 0.4, np.inf])
    assert evidence.middle(table["grid"]["at 1, 2"]["excess"]["values"]) == 0
    texts = list(triggers.cells({"num_steps": 100}, table))
    assert texts[0][:5] == ("fgo", "30", "never", "0/3", "55 [44, 90]")
    assert {len(text) for text in texts} == {len(triggers.HEADINGS)}


def _later_is_better(name="planted"):
    """Best times that are not the earliest, and a rival that arrives; on raw weights only."""
    held = _planted(name)
    # The reference needs 80, T and 100: 48 median steps are a ratio of 0.5, and 49 one of 0.49.
    changed = {
        "at 1, 2": {s: _curves(h, (1, 2), (1, 1)) for s, h in enumerate((40, 48, 70))},
        "at 3, 4": {s: _curves(h, (3, 4), (1, 1)) for s, h in enumerate((36, 49, 90))},
        "fgo_by_angle": {s: _curves(h, (9, -1), (1, 0)) for s, h in enumerate((60, 90, 90))},
    }
    raw = {**held.runs["raw"], **changed}
    return dataclasses.replace(held, runs={**held.runs, "raw": raw})


def test_the_best_times_have_the_lowest_median_of_the_ratios_that_are_shown():
    held = _later_is_better()
    table = triggers.table_of(held)["levels"]["planted"]["raw"]
    assert table["best"] == triggers.best_fixed(held, held.levels[0], "raw") == "at 3, 4"
    assert table["earliest"] == "at 1, 2"
    medians = {name: r["median"] for name, r in table["over_reference"].items()}
    assert medians["oracle"] <= medians["best"] < medians["earliest"]


def test_head_room_is_what_the_oracle_saves_of_the_constant_rate():
    table = triggers.table_of(_planted())["levels"]["planted"]["raw"]
    assert table["oracle"] == "longer"
    ratios = table["over_reference"]
    # The reference misses the target once, and T stands for its hit.
    np.testing.assert_allclose(ratios["default"]["values"], [0.55, 0.55, 0.9])
    np.testing.assert_allclose(ratios["best"]["values"], [0.5, 0.5, 0.6])
    np.testing.assert_allclose(ratios["oracle"]["values"], [0.25, 0.4, 0.6])
    text = triggers.caption(table)
    assert "Of what the best times save they realise 90%" in text
    ratios["default"]["median"] = np.inf
    assert "realise" not in triggers.caption(table)


def test_triggers_at_a_glance():
    held = _later_is_better("claim")
    content = json.loads(json.dumps(plain({"tasks": {"quadratic_bowl": triggers.table_of(held)}})))
    row, again = regrets.rows(content)
    assert row[:4] == ("quadratic_bowl", "claim", "raw", "0.55 [0.55, 0.90]")
    assert row[4:7] == ("0.50 [0.48, 0.70]", "0.49 [0.45, 0.90]†", "0.40 [0.25, 0.60]")
    # Over 36, 49 and 90, seed by seed.
    assert row[7:] == ("88%", "+12% [+0%, +22%]", "angle +67%")
    # The only rival misses the level there.
    assert again[1:4] == ("claim", "averaged", "0.68 [0.65, 1.00]")
    assert again[-1] == "-"
    first, _ = regrets.sentences(content)
    assert first == (
        "Regret, level claim, raw weights, median over 1 task: earliest times -2%, fgo +12%, "
        "angle +67%."
    )
    content["tasks"]["quadratic_bowl"]["evidence"] = False
    assert not regrets.rows(content)
    assert not regrets.sentences(content)


def test_the_picture_shows_the_triggers_beside_the_oracle():
    table = json.loads(json.dumps(plain(triggers.table_of(_planted("claim")))))
    figure = field.draw("quadratic_bowl", table, "claim")
    raw, averaged = figure.subfigs[1].axes
    for axis, ratio in ((raw, 0.55), (averaged, 0.675)):
        lines = {line.get_label(): line.get_xydata() for line in axis.lines}
        np.testing.assert_allclose(lines["default triggers"], [[30, ratio]])
        np.testing.assert_allclose(lines["own decay"], [[1, 0.5], [3, 0.7]])
        np.testing.assert_allclose(lines["decay x 4"], [[1, 0.4]])
    dimension = figure.subfigs[0].axes[0]
    assert {line.get_label() for line in dimension.lines} >= {"raw", "averaged"}
    table["levels"]["claim"]["raw"]["over_reference"]["default"]["median"] = None
    missed = field.draw("quadratic_bowl", table, "claim").subfigs[1].axes[0]
    (star,) = (line for line in missed.lines if line.get_label() == "default triggers")
    np.testing.assert_allclose(star.get_xydata(), [[30, field.TOP]])


def test_the_field_is_the_median_over_seeds_of_what_the_default_measured():
    found = triggers.table_of(_planted())["field"]["raw"]
    kept = found["steps"]
    assert kept[0] == 1
    assert kept[-1] == 100
    assert len(kept) == triggers.KEPT
    for name in triggers.SIGNALS:
        known = kept > 5
        np.testing.assert_allclose(found[name]["median"][known], 55 + kept[known])
        np.testing.assert_allclose(found[name]["low"][known], 49.5 + kept[known])
        assert np.isnan(found[name]["median"][~known]).all()


def test_tables_of_other_tasks_stay(tmp_path):
    path = tmp_path / "triggers.json"
    study.merge(path, "rule", "one", {"value": 1.0})
    study.merge(path, "rule", "two", {"value": np.inf})
    stored = json.loads(path.read_text())
    assert stored["tasks"] == {"one": {"value": 1.0}, "two": {"value": None}}


@pytest.mark.parametrize("kind", [triggers, ablation])
def test_the_page_shows_from_the_file_what_the_terminal_does(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "DEFAULT", "at 3, 4")
    name, table = kind.__name__.split(".")[-1], kind.table_of(_planted("claim"))
    study.merge(tmp_path / f"{name}.json", kind.RULE, "quadratic_bowl", table)
    made = page.page(read(tmp_path))
    assert "not as this revision" not in made
    assert made.count("alt='field of quadratic_bowl'") == (kind is triggers)
    for text in ("a planted level", "55 [44, 90]", "50 [40, 60]", "70 [30, &gt; 100]"):
        assert (text in made) == (kind is ablation or not text.startswith("70")), text


def test_a_task_without_a_rate_for_fgo_says_what_to_do(monkeypatch):
    level = {"name": "claim", "title": "", "target": 1.0, "references": {}, "rows": None}
    tuned = {"levels": {"claim": level}, "methods": {"constant": {}}}
    monkeypatch.setattr(study.tuning, "load", lambda task: tuned)
    result = CliRunner().invoke(main, ["triggers", "digits_vit"])
    assert result.exit_code == 1
    assert "no committed rate for fgo" in result.output


@pytest.mark.parametrize("name", ["triggers", "ablation"])
def test_the_commands_write_a_look_beside_the_runs(name, tmp_path, monkeypatch, cheap_refinement):
    module = {"triggers": triggers, "ablation": ablation}[name]
    every = module.variants(get_task("quadratic_bowl").shortened(150))
    wanted = ("fgo", "fgo_by_angle", "default")
    chosen = [v for v in every if v.name in wanted or v.part == "fixed"][:4]
    monkeypatch.setattr(module, "variants", lambda task: chosen)
    monkeypatch.setattr(study_commands, "RESULTS", tmp_path / "results")
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
