"""What is timed, how it adds up, and the command, at toy size."""

import dataclasses
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import fgo_jax as fgo
from benchmarks.__main__ import main
from benchmarks.measurements import overhead, workloads
from benchmarks.runs import timing
from benchmarks.tasks import get_task


class Tiny(nn.Module):
    """In the transformer's place: what is added to its steps is compiled as it is."""

    classes: int = 3

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.classes, use_bias=False)(images.mean((1, 2)))


@pytest.fixture(scope="module")
def tiny():
    small: Any = workloads.vit_small
    return small(Tiny(), horizon=400)._replace(name="tiny", phases=True)


def test_the_default_is_vit_small():
    model = workloads.MODEL
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 21e6 < size < 22e6


def test_rates_are_those_of_the_cadence():
    fisher = fgo.curvature.ggn(lambda params, batch: batch)
    assert overhead.measurement_rate(fgo.probes.lanczos(fisher, every=50), 1000) == 19 / 1000
    # Pairs, twenty steps apart.
    stream = fgo.probes.gradient_stream(every=20)
    assert overhead.measurement_rate(stream, 400) == pytest.approx(2 / 20)


def test_both_parts_of_an_overhead_add_up_by_rounds():
    brief = {"plain": np.array([1.0, 2.0]), "idle": np.array([1.1, 2.2])}
    whole = {
        "plain": np.array([1.0, 1.5, 4.0]),
        "idle": np.array([1.1, 1.6, 4.4]),
        "firing": np.array([3.1, 4.6, 12.4]),
    }
    found = overhead.combine(brief, whole, rate=0.01)
    assert found["idle"].median == pytest.approx(0.1)
    assert found["firing"].median == pytest.approx(2.0)
    assert found["total"].median == pytest.approx(0.1 + 0.01 * 2.0)


def test_seconds_between_measurements_are_shares_of_the_whole_step():
    brief = {"plain": np.array([1.0, 2.0]), "idle": np.array([1.1, 2.2])}
    whole = {"plain": np.array([15.0, 6.0, 15.0]), "idle": np.array([15.0, 6.0, 15.0])}
    found = overhead.combine(brief, whole, 0.01, is_brief=True)["total"]
    assert found.median == pytest.approx(0.1 * 1.5 / 15.0)
    # That the whole step may be shorter than its median belongs to the bound.
    assert found.upper == pytest.approx(0.1 * 2.0 / 6.0)


def test_what_is_added_between_measurements_is_timed_on_the_brief_batch(tiny, monkeypatch):
    assert tiny.between.batch["image"].shape[0] == 2
    assert tiny.batch["image"].shape[0] == 16
    task = get_task("digits_vit")
    task = dataclasses.replace(task, init=jax.jit(task.init), batch=jax.jit(task.batch))
    monkeypatch.setattr(workloads, "get_task", lambda name: task)
    digits = workloads.digits_vit()
    assert digits.between is digits


def test_a_probe_fires_in_the_timed_steps_that_it_should_fire_in(tiny):
    part = overhead.parts(tiny)["lanczos"]._replace(plain=optax.identity())
    timed = overhead.calls(tiny, part)
    for name, first, wanted in (("idle", 0, 0), ("firing", overhead.FIRES, 2)):
        timed[name]()
        _, state = timed[name]()
        assert int(state.probe_state.evaluations) == wanted
        assert int(state.clock.total_step) == first + 2


def test_a_step_limit_measures_in_the_timed_steps_that_it_should_measure_in(tiny):
    # A step each: the first to compile, which always measures, and a timed one.
    for name in overhead.STEP_LIMITS:
        part = overhead.parts(tiny)[name]
        timed = overhead.calls(tiny, part)
        for call, wanted in ((timed["idle"], 1), (timed["firing"], 2)):
            call()
            state = call()[1]
            assert int(optax.tree.get(state, "measurements")) == wanted
        assert part.rate == 0.1


def test_bounds_of_two_parts_are_those_of_their_sum():
    rng = np.random.default_rng(0)
    idle, cost = rng.normal(0.0, 1.0, 41), rng.normal(5.0, 2.0, 41)
    both = timing.bounded(idle, cost)
    assert both.median == pytest.approx(np.median(idle) + np.median(cost))
    # Errors of parts measured apart add in squares, to less than both bounds together.
    errors = [timing.bounded(part).upper - np.median(part) for part in (idle, cost)]
    assert max(errors) < both.upper - both.median < sum(errors)
    # A median of normal values has pi/2 times the variance of their mean.
    wanted = 1.645 * np.sqrt(np.pi / 2 * (1.0 + 4.0) / 41)
    assert both.upper - both.median == pytest.approx(wanted, rel=0.4)


def test_parts_measured_anew_leave_the_others_alone():
    def row(workload, size, part, total):
        sizes = dict.fromkeys(
            ("batch_size", "batch_size_between", "horizon", "steps_per_call", "repeats"), 1
        )
        return {"workload": workload, "parameters": size, **sizes, "part": part, "total": total}

    held = [row("a", 3, "lanczos", 1), row("a", 3, "hutchinson", 2), row("b", 4, "lanczos", 3)]
    found = overhead.merged(held, [row("a", 3, "lanczos", 9)])
    assert found == [*held[1:], row("a", 3, "lanczos", 9)]
    # Of a workload that is now another nothing is kept.
    found = overhead.merged(held, [row("a", 5, "lanczos", 9)])
    assert found == [held[2], row("a", 5, "lanczos", 9)]


@pytest.mark.slow
def test_the_command_writes_the_overhead_of_parts(tmp_path, monkeypatch, tiny):
    # A probe that passes free of charge, a step limit, and what has no limit.
    parts = ["gradient_stream", "clip_by_softmax_radius", "target_acquisition"]
    monkeypatch.setattr("benchmarks.measurements.commands.WORKLOADS", {"tiny": lambda: tiny})
    asked = ["overhead", "--rounds", "2", "--output", str(tmp_path), "--parts", ",".join(parts)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "overhead.json").read_text())["rows"]
    rows = {row["part"]: row for row in stored if row["workload"] == "tiny"}
    assert list(rows) == parts
    for name in parts[:2]:
        row = rows[name]
        assert row["limit"] == overhead.LIMITS[name]
        assert row["met"] == (row["total_upper"] <= row["limit"])
        assert row["total"] <= row["total_upper"]
        assert {"plain_seconds", "idle_seconds", "firing_seconds"} <= set(row)
    assert rows["target_acquisition"]["plain"] == "refinement"
    assert "95 % bound" in result.output


def test_where_the_model_takes_nothing_the_default_is_beside_adamw():
    workload = workloads.leaves(100)
    assert len(workload.params) == 100
    assert len({leaf.shape for leaf in workload.params}) == 8
    ((name, part),) = overhead.parts(workload).items()
    assert (name, part.plain_name) == ("target_acquisition", "adamw")
