"""What is timed, how it adds up, and the command, at toy size."""

import json

import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import fgo_jax as fgo
from benchmarks.__main__ import main
from benchmarks.measurements import overhead, workloads
from benchmarks.runs import clock


@pytest.fixture
def tiny():
    small = workloads.vit_small(
        batch_size=16, horizon=400, patch=16, dim=4, depth=1, heads=2, mlp=4, classes=3
    )
    return small._replace(steps=1, phases=True)


def test_the_default_is_vit_small():
    model = workloads.VisionTransformer()
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
    idle = {"adam": np.array([1.0, 2.0]), "probe:idle": np.array([1.1, 2.2])}
    whole = {
        "adam": np.array([1.0, 1.5, 4.0]),
        "probe:idle": np.array([1.1, 1.6, 4.4]),
        "probe:firing": np.array([3.1, 4.6, 12.4]),
    }
    found = overhead.combine(idle, whole, "probe", "adam", rate=0.01, limit=0.2)
    assert found.idle.median == pytest.approx(0.1)
    assert found.firing.median == pytest.approx(2.0)
    assert found.total.median == pytest.approx(0.1 + 0.01 * 2.0)


def test_seconds_between_measurements_are_shares_of_the_whole_step():
    idle = {"adam": np.array([1.0, 2.0]), "probe:idle": np.array([1.1, 2.2])}
    whole = {"adam": np.array([15.0, 6.0, 15.0]), "probe:idle": np.array([15.0, 6.0, 15.0])}
    found = overhead.combine(idle, whole, "probe", "adam", 0.01, 0.2, is_brief=True)
    assert found.total.median == pytest.approx(0.1 * 1.5 / 15.0)
    # That the whole step may be shorter than its median belongs to the bound.
    assert found.total.upper == pytest.approx(0.1 * 2.0 / 6.0)


def test_what_is_added_between_measurements_is_timed_on_the_brief_batch(tiny):
    assert tiny.between.batch["image"].shape[0] == 2
    assert tiny.batch["image"].shape[0] == 16
    digits = workloads.digits_vit()
    assert digits.between is digits


def test_a_probe_fires_in_the_timed_steps_that_it_should_fire_in(tiny):
    tx = fgo.phased(
        [fgo.acquisition(1e-3)], [], overhead.on_demand(overhead.probes(tiny)["lanczos"])
    )
    for first, wanted in ((0, 0), (overhead.FIRES, 2)):
        call = workloads.call(tiny, tx, first)
        call()
        _, state = call()
        assert int(state.probe_state.evaluations) == wanted
        assert int(state.clock.total_step) == first + 2


def test_a_step_limit_measures_in_the_timed_steps_that_it_should_measure_in(tiny):
    # A step each: the first to compile, which always measures, and a timed one.
    for name in overhead.STEP_LIMITS:
        for part, timed in overhead.step_limit_calls(tiny, name).items():
            timed()
            state = timed()[1]
            wanted = 2 if part.endswith("firing") else 1
            assert int(optax.tree.get(state, "measurements")) == wanted
        assert overhead.step_limit_rate(name) == 0.1


def test_bounds_of_two_parts_are_those_of_their_sum():
    rng = np.random.default_rng(0)
    idle, cost = rng.normal(0.0, 1.0, 41), rng.normal(5.0, 2.0, 41)
    both = clock.bounded(idle, cost)
    assert both.median == pytest.approx(np.median(idle) + np.median(cost))
    # Errors of parts measured apart add in squares, to less than both bounds together.
    errors = [clock.bounded(part).upper - np.median(part) for part in (idle, cost)]
    assert max(errors) < both.upper - both.median < sum(errors)
    # A median of normal values has pi/2 times the variance of their mean.
    wanted = 1.645 * np.sqrt(np.pi / 2 * (1.0 + 4.0) / 41)
    assert both.upper - both.median == pytest.approx(wanted, rel=0.4)


def test_parts_measured_anew_leave_the_others_alone():
    def entry(size, **overheads):
        return {"parameters": size, "overheads": overheads}

    held = {"a": entry(3, lanczos=1, hutchinson=2), "b": entry(4, lanczos=3)}
    found = overhead.merged(held, {"a": entry(3, lanczos=9)})
    assert found == {"a": entry(3, lanczos=9, hutchinson=2), "b": entry(4, lanczos=3)}
    # Of a workload that is now another nothing is kept.
    assert overhead.merged(held, {"a": entry(5, lanczos=9)})["a"] == entry(5, lanczos=9)


@pytest.mark.slow
def test_the_command_writes_every_overhead(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr("benchmarks.measurements.commands.WORKLOADS", {"tiny": lambda: tiny})
    result = CliRunner().invoke(main, ["overhead", "--rounds", "2", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    entry = json.loads((tmp_path / "overhead.json").read_text())["workloads"]["tiny"]
    for name, limit in overhead.LIMITS.items():
        row = entry["overheads"][name]
        assert row["limit"] == limit
        assert row["met"] == (row["total"]["upper"] <= limit)
        assert row["total"]["median"] <= row["total"]["upper"]
        assert set(row["seconds"]) == {row["plain"], f"{name}:idle", f"{name}:firing"}
    assert entry["overheads"]["target_acquisition"]["plain"] == "refinement"
    assert "95 % bound" in result.output
