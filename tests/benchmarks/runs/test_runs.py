"""Runs, and what tells one from another."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import gammaln

from benchmarks.methods import METHODS
from benchmarks.methods.method import Method, alone
from benchmarks.runs import store
from benchmarks.runs.training import AVERAGING, make_program, running_average, train
from benchmarks.tasks import get_task

BOWL = get_task("quadratic_bowl").shortened(20)


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


def _sgd(rate):
    return Method("sgd", lambda task, hp: optax.sgd(rate), trajectory=f"sgd_{rate}")


def test_any_transformation_can_be_trained():
    curves = train(BOWL, _sgd(0.1), {}, seed=0)
    assert curves.raw[-1] < curves.raw[0]


def test_a_run_comes_back_from_the_cache_as_it_was(tmp_path, monkeypatch):
    setting = {"learning_rate": 0.01}
    first = store.run(BOWL, METHODS["constant"], setting, seed=1, directory=tmp_path)
    monkeypatch.setattr(store, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    # Siblings share runs.
    again = store.run(BOWL, METHODS["constant_averaged"], setting, seed=1, directory=tmp_path)
    np.testing.assert_array_equal(first.raw, again.raw)
    np.testing.assert_array_equal(first.averaged, again.averaged)
    assert first.test == again.test
    assert not list(tmp_path.rglob("*.tmp"))


def _identity(task=BOWL, method="constant", rate=0.1, seed=0):
    return store.run_identity(task, METHODS[method], {"learning_rate": rate}, seed)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"seed": 1}, {"seed", "data"}),
        ({"rate": 0.2}, {"hyperparameters"}),
        ({"task": BOWL.shortened(10)}, {"num_steps"}),
        ({"method": "natural_gradient"}, {"trajectory", "program"}),
        ({"task": dataclasses.replace(BOWL, weight_decay=0.1)}, {"program"}),
    ],
)
def test_a_run_that_differs_in_anything_is_another_run(change, differs):
    one, other = _identity(), _identity(**change)
    assert {name for name in one if one[name] != other[name]} == differs


def test_a_run_on_another_processor_is_another_run(monkeypatch):
    one = _identity()
    monkeypatch.setattr(store, "processor", lambda: "another")
    assert {name for name in one if one[name] != _identity()[name]} == {"processor"}


def test_a_run_has_one_key_in_all_processes():
    here = _identity(method="natural_gradient")
    code = (
        "from benchmarks.runs.store import run_identity\n"
        "from benchmarks.methods import METHODS\n"
        "from benchmarks.tasks import get_task\n"
        "task, method = get_task('quadratic_bowl').shortened(20), METHODS['natural_gradient']\n"
        "import json; print(json.dumps(run_identity(task, method, {'learning_rate': 0.1}, 0)))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=store.ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert json.loads(there.stdout) == here


HELPER = """
import numpy as np

TABLE = np.linspace(0.0, 1.0, 100_000, dtype=np.float32)

def factor():
    # A comment.
    return 2.0 * TABLE[70_000:]
"""


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("# A comment.", "# Another one,\n    # of two lines.", True),
        ("2.0", "2.5", False),
        ("1.0", "1.0001", False),  # a constant too long to be printed
    ],
)
def test_a_helper_in_another_file_changes_the_key_where_it_changes_the_arithmetic(
    old, new, is_same, tmp_path
):
    def digest(text):
        path = tmp_path / "helper.py"
        path.write_text(text)
        helper = runpy.run_path(str(path))

        def scale(task):
            factor = jnp.asarray(helper["factor"]())
            return optax.stateless_with_tree_map(lambda update, _: update * factor.sum())

        program = make_program(BOWL, Method("stand_in", alone(scale)))
        return store.program_digest(BOWL, program, ("learning_rate",))

    assert (digest(HELPER) == digest(HELPER.replace(old, new))) == is_same


def test_a_failed_run_is_stored_as_null_and_read_as_nan(tmp_path):
    curves = train(BOWL, _sgd(1e30), {}, seed=0)
    assert np.isnan(curves.raw[-1])
    store.write_json(tmp_path / "run.json", curves)
    text = (tmp_path / "run.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert np.isnan(store.curves_from(json.loads(text)).raw[-1])
