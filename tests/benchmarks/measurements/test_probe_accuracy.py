"""The dense truth, the timing of peers and the command, at toy size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.measurements import commands, probe_accuracy, probe_speed
from benchmarks.runs import timing

pytest.importorskip("matfree")
pytest.importorskip("traceax")

TINY = (3, 4, 3)
FLAT = (8, 3)  # the command's; as many parameters as there are steps of Lanczos


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(
        probe_accuracy, "MODELS", {"mlp": lambda: probe_speed.mlp(FLAT, examples=8)}
    )
    monkeypatch.setattr(probe_accuracy, "LAYERS", {"tiny": FLAT})
    monkeypatch.setattr(probe_accuracy, "SETTINGS", probe_accuracy.SETTINGS[:1])


def test_truth_is_the_hessian_of_the_loss_of_the_linearised_model():
    model = probe_speed.mlp(TINY, examples=6)
    flat, unravel = jax.flatten_util.ravel_pytree(model.params)

    @jax.jit
    def fisher(batch):
        def loss(delta):
            outputs, tangent = jax.jvp(
                lambda p: model.predict(p, batch), (model.params,), (unravel(delta),)
            )
            z = outputs + tangent
            # The labels enter the GGN nowhere; zeros will do.
            return -jnp.mean(jax.nn.log_softmax(z)[:, 0])

        return jax.hessian(loss)(jnp.zeros_like(flat))

    parts = model.batch, *({"x": x} for x in np.split(np.asarray(model.batch["x"]), 2))
    whole, first, second = (np.asarray(fisher(part), np.float64) for part in parts)
    found = probe_accuracy.truth(model)
    wanted = np.linalg.eigvalsh(whole)[::-1][: len(found.eigenvalues)]
    # The dense Hessian is float32.
    np.testing.assert_allclose(found.eigenvalues[: len(wanted)], wanted, atol=1e-5 * wanted[0])
    halves = np.trace(first), np.trace(second), np.sum(first * second)
    np.testing.assert_allclose(found.halves, halves, rtol=1e-5)


def test_both_forms_of_the_timed_operators_are_the_same():
    for kind in ("diagonal", "ggn"):
        given = probe_speed.problem(kind, TINY)
        flat, unravel = jax.flatten_util.ravel_pytree(given.params)
        vector = jnp.linspace(-1.0, 1.0, flat.size)
        tree = given.operator(given.params, given.batch)(unravel(vector))
        np.testing.assert_allclose(
            jax.flatten_util.ravel_pytree(tree)[0],
            given.flat_operator(given.flat_params, given.batch)(vector),
            rtol=1e-6,
        )


def test_a_bound_lies_above_its_median_and_shrinks_with_rounds():
    rng = np.random.default_rng(0)
    few, many = (timing.bounded(1.0 + 0.1 * rng.standard_normal(n)) for n in (10, 1000))
    for bound in (few, many):
        assert bound.median < bound.upper
    assert many.upper - many.median < few.upper - few.median
    assert timing.bounded(np.ones(3)) == (1.0, 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_the_command_compares_probes_with_truth_and_peers(tmp_path):
    command = ["sketch", "--draws", "4", "--rounds", "2", "--output", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "sketch.json").read_text())
    signals = {row["signal"] for row in stored["signals"] if row["model"] == "mlp"}
    assert signals == {"trace", "trace_square", "intrinsic_dimension", "top_eigenvalue"}
    peers = {}
    for row in stored["speed"]:
        peers.setdefault((row["size"], row["task"], row["operator"]), set()).add(row["peer"])
    for operator in ("ggn", "diagonal"):
        assert peers["tiny", "trace", operator] == {"matfree", "traceax"}
        assert peers["tiny", "lanczos", operator] == {"matfree"}
    assert stored["environment"]["matfree"]
    assert "coverage" in result.output


def test_the_command_names_an_unknown_size():
    result = CliRunner().invoke(main, ["sketch", "--sizes", "7"])
    assert result.exit_code == 2
    assert "no size '7'" in result.output


def test_a_look_does_not_take_the_place_of_what_is_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(commands.probe_accuracy, "measure", lambda **options: {"draws": 1})
    monkeypatch.setattr(commands.probe_accuracy, "print_tables", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    look, whole = tmp_path / "runs" / "sketch.json", tmp_path / "results" / "sketch.json"
    assert CliRunner().invoke(main, ["sketch", "--draws", "4"]).exit_code == 0
    assert look.exists()
    assert not whole.exists()
    assert CliRunner().invoke(main, ["sketch"]).exit_code == 0
    assert whole.exists()
