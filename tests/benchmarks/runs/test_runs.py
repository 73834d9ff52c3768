"""Runs, their cache and the command line, at a tiny scale."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from jax.scipy.special import gammaln

from benchmarks.__main__ import main
from benchmarks.methods import METHODS, get_method
from benchmarks.race import grids, tuning
from benchmarks.race.levels import ADAM, ALONE, HORIZON, SQRT
from benchmarks.report.claims import CLAIMS
from benchmarks.runs import store as runner
from benchmarks.runs.training import AVERAGING, running_average, train
from benchmarks.tasks import TASKS, get_task

BOWL = get_task("quadratic_bowl").shortened(20)


def test_every_method_has_the_same_number_of_trials():
    for name in TASKS:
        task = get_task(name)
        for method in METHODS.values():
            if method.enters(task):
                trials = grids.grid(task, method)
                assert len({tuple(t.items()) for t in trials}) == grids.num_trials(task)


def test_the_race_is_not_run_on_the_tuning_seeds():
    seeds = [*grids.TUNING_SEEDS, *grids.TARGET_SEEDS, *grids.RACE_SEEDS]
    assert len(set(seeds)) == len(seeds)


def test_what_the_claim_compares_is_raced_on_all_seeds():
    def seeds(method, task="digits_vit"):
        return grids.race_seeds(get_task(task), METHODS[method])

    references = {name for names in (ADAM, ALONE, SQRT) for name in names.values()}
    for name in {*references, *HORIZON, *(c.ours for c in CLAIMS), *(c.rival for c in CLAIMS)}:
        assert name is None or seeds(name) == grids.RACE_SEEDS
    for few in (seeds("muon"), seeds("fgo_by_sasa"), seeds("fgo", "char_gpt")):
        assert few == grids.FEW_RACE_SEEDS


def test_a_run_is_the_plain_training_loop():
    curves = train(BOWL, METHODS["constant"], {"learning_rate": 0.01}, seed=3)

    tx = optax.adam(lambda count: 0.01 * jnp.minimum(1, (count + 1) / BOWL.warmup_steps))
    init_key, batch_key = jax.random.split(jax.random.key(3))
    data = BOWL.data(3)
    params = average = BOWL.init(init_key)
    state = tx.init(params)

    @jax.jit
    def update(params, state, average, step):
        grads = jax.grad(BOWL.loss)(params, BOWL.batch(data, batch_key, step))
        updates, state = tx.update(grads, state)
        params = optax.apply_updates(params, updates)
        return params, state, running_average(average, params, step)

    for step in range(BOWL.num_steps):
        params, state, average = update(params, state, average, jnp.int32(step))
    # The same arithmetic, compiled in other pieces.
    np.testing.assert_allclose(curves.raw[-1], BOWL.evaluate(data, params), rtol=1e-4)
    np.testing.assert_allclose(curves.averaged[-1], BOWL.evaluate(data, average), rtol=1e-4)
    assert list(curves.steps) == list(range(2, 21, 2))


def test_the_average_weighs_late_steps_by_a_power_of_time():
    # Averaging the unit vectors leaves the weights themselves. Unrolled, the weight of
    # step s is Gamma(s + 1/c) / Gamma(s + 1) up to a constant, about s ** (1/c - 1).
    steps = jnp.arange(50)
    weights, _ = jax.lax.scan(
        lambda average, step: (running_average(average, jnp.eye(50)[step], step), None),
        jnp.zeros(50),
        steps,
    )
    expected = np.exp(gammaln(steps + 1 / AVERAGING) - gammaln(steps + 1.0))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-3)


def test_any_transformation_can_be_trained():
    curves = train(BOWL, optax.sgd(0.1), seed=0)
    assert curves.raw[-1] < curves.raw[0]


def test_a_run_comes_back_from_the_cache_as_it_was(tmp_path, monkeypatch):
    setting = {"learning_rate": 0.01}
    first = runner.run(BOWL, "constant", setting, seed=1, directory=tmp_path)
    monkeypatch.setattr(runner, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    # Siblings share runs.
    again = runner.run(BOWL, "constant_averaged", setting, seed=1, directory=tmp_path)
    np.testing.assert_array_equal(first.raw, again.raw)
    np.testing.assert_array_equal(first.averaged, again.averaged)
    assert first.test == again.test
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("change", ["seed", "setting", "horizon", "code"])
def test_a_run_that_differs_in_anything_is_another_run(change):
    def identity(task=BOWL, rate=0.1, seed=0):
        return runner.run_identity(task, get_method("constant"), {"learning_rate": rate}, seed)

    other = {
        "seed": lambda: identity(seed=1),
        "setting": lambda: identity(rate=0.2),
        "horizon": lambda: identity(task=BOWL.shortened(10)),
        "code": lambda: {**identity(), "code": runner._fingerprint((__file__,), ())},
    }[change]()
    assert other != identity()


def test_a_run_depends_on_the_sources_that_its_method_uses():
    names = ("constant", "natural_gradient", "fgo")
    digests = {runner.code_fingerprint(BOWL, METHODS[name]) for name in names}
    assert len(digests) == len(names)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_method_names_sources_that_exist(method):
    for pattern in method.uses:
        assert list((runner.ROOT / "fgo_jax").glob(pattern))


def test_a_failed_run_is_stored_as_null_and_read_as_nan(tmp_path):
    curves = train(BOWL, optax.sgd(1e30), seed=0)
    assert np.isnan(curves.raw[-1])
    runner.write_json(tmp_path / "run.json", curves)
    text = (tmp_path / "run.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert np.isnan(runner.curves_from(json.loads(text)).raw[-1])


def test_the_command_line_lists_what_there_is():
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0, result.output
    for name in [*TASKS, "natural_gradient_two_step", "fgo_averaged"]:
        assert name in result.output


def test_the_command_line_names_an_unknown_method():
    result = CliRunner().invoke(main, ["race", "quadratic_bowl", "--methods", "adamw9"])
    assert result.exit_code == 2
    assert "no method 'adamw9'" in result.output


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
        fewer = CliRunner().invoke(main, [*command, "--seeds", "2", "--output", str(tmp_path)])
    finally:
        get_task.cache_clear()
    assert result.exit_code == 0, result.output
    assert fewer.exit_code == 0, fewer.output
    assert not json.loads((tmp_path / "quadratic_bowl-quick.json").read_text())["evidence"]
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
