"""Single transformations against Adam: what is counted, what is passed, and the command."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.methods import METHODS
from benchmarks.methods.method import TRANSFORM_TASKS, Method, alone
from benchmarks.race import grids
from benchmarks.race.hold import Entry, Race
from benchmarks.race.levels import ADAM, Level
from benchmarks.report.text import restored
from benchmarks.runs import timing
from benchmarks.runs.training import Curves, train
from benchmarks.studies import commands, transforms
from benchmarks.tasks import get_task
from benchmarks.tasks.char_gpt import VOCABULARY

TASK = get_task("digits_autoencoder")


@pytest.mark.parametrize("name", TRANSFORM_TASKS)
def test_adam_holds_eight_bytes_per_parameter(name):
    task = get_task(name)
    tx = METHODS["constant"].build(task, {"learning_rate": 1e-3})
    # Two moments in float32; the counters of a whole tree are the rest.
    assert transforms.bytes_per_parameter(task, tx) == pytest.approx(8, abs=1e-3)
    assert transforms.bytes_per_parameter(task, optax.sgd(0.1)) == 0


def test_factors_and_bases_are_counted():
    task = get_task("digits_autoencoder")
    tx = METHODS["natural_gradient"].build(task, {"learning_rate": 1e-3})
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    leaves = jax.tree.leaves(shapes)
    factors = sum(d * d for leaf in leaves if leaf.ndim == 2 for d in leaf.shape)
    size = sum(leaf.size for leaf in leaves)
    wanted = 8 + 2 * 4 * factors / size
    assert transforms.bytes_per_parameter(task, tx) == pytest.approx(wanted, abs=1e-3)


@pytest.fixture
def small_tasks(small_autoencoder, monkeypatch):
    """Of the text's two equal blocks one, as wide as ever."""
    module = importlib.import_module("benchmarks.tasks.char_gpt")
    monkeypatch.setattr(module, "MODEL", module.MODEL.clone(depth=1))
    return {"char_gpt": module.char_gpt(), "digits_autoencoder": small_autoencoder}


@pytest.mark.parametrize("name", TRANSFORM_TASKS)
def test_every_transformation_is_built_and_updates_what_it_is_given(name, small_tasks):
    task = small_tasks[name]
    names = [method.name for method in transforms.contestants(task)]
    assert {"constant", "muon", "natural_gradient", "shampoo_power"} <= set(names)
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.eval_shape(task.batch, task.data(0), jax.random.key(0), 0)
    for method in transforms.contestants(task):
        tx = method.build(task, grids.grid(task, method)[0])
        extras = {"batch": batch} if method.needs_batch else {}
        update = optax.with_extra_args_support(tx).update

        def first(params, tx=tx, update=update, **extras):
            return update(params, tx.init(params), params, **extras)[0]

        updates = jax.eval_shape(first, params, **extras)
        assert jax.tree.all(jax.tree.map(lambda u, p: u.shape == p.shape, updates, params))


def test_adam_gets_what_muon_does_not_orthogonalise(small_tasks):
    task = small_tasks["char_gpt"]
    tx = METHODS["muon"].build(task, {"learning_rate": 1.0})
    params = jax.jit(task.init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params)

    @jax.jit
    def first(grads, params):
        updates, _ = tx.update(grads, tx.init(params), params)
        return updates

    # Adam's first update is a sign, up to a factor: all entries are as large.
    size = jax.tree.map(
        lambda u: task.warmup_steps * np.abs(u), jax.device_get(first(grads, params))
    )
    for leaf in (size["embed"]["embedding"], size["positions"], size["head"]["kernel"]):
        assert leaf.std() < 0.01 * leaf.mean()
    matrix = size["block_0"]["up"]["kernel"]
    assert matrix.std() > 0.5 * matrix.mean()
    # Five Newton-Schulz steps leave singular values between .7 and 1.2.
    np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.2, rtol=0.3)


def _method(**fields):
    """A stand-in whose update is the mean of a batch's pixels, zero without a batch."""

    def transform(task):
        def update(grads, state, params=None, *, batch=None, **extra_args):
            del params, extra_args
            found = jnp.zeros(()) if batch is None else batch["pixels"].mean()
            return jax.tree.map(lambda g: jnp.full_like(g, found), grads), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    return Method("stand_in", alone(transform), **fields)


@pytest.mark.parametrize("needs_batch", [False, True])
def test_a_batch_is_passed_to_those_who_need_it(needs_batch, small_autoencoder):
    task = small_autoencoder.shortened(10)
    method = _method(trajectory=f"stand_in_{needs_batch}", needs_batch=needs_batch)
    params = task.init(jax.random.split(jax.random.key(0))[0])
    curves = train(task, method, {"learning_rate": 1.0}, seed=0)
    still = float(task.evaluate(task.data(0), params))
    assert (curves.raw[-1] == pytest.approx(still, rel=1e-6)) == (not needs_batch)


def test_a_timed_scan_holds_whole_cadences(small_autoencoder):
    assert timing.whole_cadences(20, [1, 10]) == 20
    assert timing.whole_cadences(20, [10, 15, 1]) == 30
    assert timing.whole_cadences(200, []) == 200
    task = small_autoencoder.shortened(10)
    contestants = {
        "constant": (METHODS["constant"], {"learning_rate": 1e-3}),
        "stand_in": (_method(needs_batch=True, cadence=4), {"learning_rate": 0.0}),
    }
    times = timing.step_times(task, contestants, rounds=1)
    assert times["constant"].ratio == 1
    assert times["stand_in"].seconds > 0


def test_fewer_seeds_tune_where_runs_are_long():
    assert grids.tuning_seeds(get_task("char_gpt")) == grids.TUNING_SEEDS[:1]
    assert grids.tuning_seeds(get_task("digits_vit")) == grids.TUNING_SEEDS


def test_what_is_no_evidence_is_written_beside_what_is(tmp_path, monkeypatch):
    look = SimpleNamespace(evidence=False)
    monkeypatch.setattr(commands, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(commands, "held_at_settings", lambda *args, **kwargs: look)
    monkeypatch.setattr(transforms, "table_of", lambda race, begun: {"begun": begun})
    monkeypatch.setattr(transforms, "print_tables", lambda tables, console: None)
    options = ["--tasks", "char_gpt", "--seeds", "1", "--output", str(tmp_path)]
    assert CliRunner().invoke(main, ["transforms", *options]).exit_code == 0
    assert (tmp_path / "transforms-quick.json").exists()
    assert not (tmp_path / "results").exists()


def _curves(hit):
    """Twenty from the start on, and ten from step `hit` on."""
    steps = np.arange(TASK.eval_every, TASK.num_steps + 1, TASK.eval_every)
    values = np.where(steps >= hit, 10.0, 20.0)
    test = {"raw": {"loss": 0.5}}
    return Curves(steps, values, values, values, {}, test, 0.0)


@pytest.mark.parametrize(("data", "load"), [(None, 1e9), (None, 0.0), ("other", 0.0)])
def test_rows_raced_later_join_a_committed_table_at_its_own_target(
    data, load, tmp_path, monkeypatch
):
    rate = {"learning_rate": 0.01}
    entries = {
        name: Entry(TASK, METHODS[name], rate, {0: _curves(hit)})
        for name, hit in (("constant", 400), ("muon", 100))
    }
    # The settings' own target is missed, that of the table reached.
    level = Level("constant", "Adam's end", 5.0, ADAM)
    times = {"constant": timing.StepTime(1.0, 1.0), "muon": timing.StepTime(2.0, 2.0)}
    short = {"seeds": [100], "trials": [], "at_edge": {"constant": False}, "chosen": {}}
    tuned = {"methods": {"constant": {"trials": [], "at_edge": {}}, "muon": short}}
    race = Race(TASK, [level], {"constant": entries}, times, True, tuned)
    monkeypatch.setattr(commands, "RESULTS", tmp_path)
    monkeypatch.setattr(commands, "held_at_settings", lambda *args, **kwargs: race)
    monkeypatch.setattr(transforms.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(transforms, "print_tables", lambda tables, console: None)
    begun = {"data": data, "target": 11.0, "rows": {"constant": {"is": "old"}, "kfac": {}}}
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps({"tasks": {TASK.name: begun, "char_gpt": {"is": "left alone"}}}))
    command = ["transforms", "--tasks", TASK.name, "--methods", "muon"]
    result = CliRunner().invoke(main, command)
    if data is not None:
        assert result.exit_code == 2
        assert "other data" in result.output
        return
    assert result.exit_code == 0, result.output
    stored = json.loads(path.read_text())["tasks"]
    assert stored["char_gpt"] == {"is": "left alone"}
    added = stored[TASK.name]["rows"].pop("muon")
    assert stored[TASK.name] == begun
    # Smoothed over five evaluations, both hit forty steps later.
    late = (TASK.smoothing - 1) * TASK.eval_every
    assert added["steps"]["values"] == [100 + late]
    assert added["ratio"]["values"] == pytest.approx([(100 + late) / (400 + late)])
    assert added["seconds_ratio"]["values"] == pytest.approx([2 * (100 + late) / (400 + late)])
    assert added["tuning"] == {key: short[key] for key in ("seeds", "trials", "at_edge")}
    assert (
        added["note"].split("; ")
        == ["one tuning seed", "step time on a busy machine"][: 2 if load else 1]
    )


def test_the_command_tables_every_transformation_that_is_asked_for(
    tmp_path, monkeypatch, small_autoencoder
):
    monkeypatch.setattr(commands, "get_task", lambda name: small_autoencoder)
    monkeypatch.setattr(transforms.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    command = ["transforms", "--tasks", "digits_autoencoder", "--methods", "muon"]
    options = ["--steps", "20", "--seeds", "1", "--output", str(tmp_path)]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "no evidence" in result.output
    stored = json.loads((tmp_path / "transforms-quick.json").read_text())
    table = stored["tasks"]["digits_autoencoder"]
    assert not table["evidence"]
    rows = table["rows"]
    assert list(rows) == ["constant", "muon"]
    assert rows["constant"]["step_time_ratio"] == 1
    assert rows["constant"]["state_bytes_per_parameter"] == pytest.approx(8, abs=1e-3)
    # One moment of a matrix, two of a bias.
    assert 4 < rows["muon"]["state_bytes_per_parameter"] < 5
    shown = list(transforms.cells(restored(table)))
    assert [cells[0] for cells in shown] == ["optax.adam", "optax.contrib.muon"]
    assert {len(cells) for cells in shown} == {len(transforms.HEADINGS)}


def test_the_command_names_an_unknown_transformation():
    result = CliRunner().invoke(main, ["transforms", "--methods", "newton"])
    assert result.exit_code == 2
    assert "no method 'newton'" in result.output


class Tokens(nn.Module):
    """A matrix between the two that Muon leaves to Adam."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, 8, name="embed")(tokens)
        return nn.Dense(VOCABULARY, name="head")(nn.Dense(8, use_bias=False)(x))


def test_a_short_race_on_the_text(tmp_path, monkeypatch):
    # The text as it is; of the model and of the timing as little as there can be.
    module = importlib.import_module("benchmarks.tasks.char_gpt")
    monkeypatch.setattr(module, "MODEL", Tokens())
    small = dataclasses.replace(module.char_gpt(), timed_steps=1)
    monkeypatch.setattr("benchmarks.race.commands.get_task", lambda name: small)
    command = ["race", "char_gpt", "--methods", "muon", "--steps", "12", "--seeds", "1"]
    result = CliRunner().invoke(main, [*command, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "char_gpt-quick.json").read_text())
    assert set(stored["levels"]["quick"]["methods"]) == {"constant", "muon"}
    # The text is another one in another Python, and a result says which it was.
    assert stored["data"] == get_task("char_gpt").digest
