"""The phases with the triggers of others: nothing else differs."""

import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import fgo_jax as fgo
from benchmarks import rival_triggers
from benchmarks.__main__ import main
from benchmarks.methods import METHODS, STUDIED
from benchmarks.race.commands import chosen_methods
from benchmarks.runs import transitions
from benchmarks.runs.training import train
from benchmarks.tasks import get_task

BOWL = get_task("quadratic_bowl").shortened(60)
RIVALS = [name for name in METHODS if METHODS[name].by_request and METHODS[name].weights == "raw"]


def test_rivals_race_only_where_they_are_asked_for():
    assert len(RIVALS) == 9
    result = CliRunner().invoke(main, ["list"])
    for name in RIVALS:
        assert name in result.output
    assert not {m.name for m in chosen_methods(BOWL, None)} & set(RIVALS)
    # Single transformations have a comparison of their own.
    in_race = {m.name for m in chosen_methods(get_task("char_gpt"), None)}
    assert in_race >= {"constant", "muon", "natural_gradient", "fgo", "fgo_averaged"}
    assert not in_race & {"kfac", "fismo", "diagonal_fisher", "low_rank_fisher", "shampoo_power"}
    assert {m.name for m in chosen_methods(BOWL, "fgo_by_sasa")} == {"constant", "fgo_by_sasa"}


@pytest.mark.parametrize("name", RIVALS)
def test_only_the_trigger_and_its_probe_differ(name, cheap_refinement):
    task, hp = BOWL, {"learning_rate": 0.1}
    params = jax.eval_shape(task.init, jax.random.key(0))
    ours = jax.eval_shape(METHODS["fgo"].build(task, hp).init, params)
    theirs = jax.eval_shape(METHODS[name].build(task, hp).init, params)
    for part in ("transforms", "average", "clock", "fgo_learning_rate"):
        assert getattr(ours, part) == getattr(theirs, part)
    update = METHODS[name].build(task, hp).update
    loss = jax.ShapeDtypeStruct((), np.float32)
    _, after = jax.eval_shape(update, params, theirs, params, value=loss)
    assert after == theirs


def test_rivals_decay_as_ours_do(cheap_refinement):
    task, hp = BOWL, {"learning_rate": 0.1}
    params = task.init(jax.random.key(0))

    def noise(step):
        return optax.tree.random_like(jax.random.key(step), params, jax.random.normal)

    def late_rate(name):
        tx = METHODS[name].build(task, hp)

        @jax.jit
        def late():
            state = tx.init(params)
            clock = state.clock._replace(total_step=jax.numpy.int32(500))
            forced = fgo.force_phase(state._replace(clock=clock), "execution")

            def step(number, state):
                return tx.update(noise(number), state, params, value=1.0)[1]

            return fgo.telemetry(jax.lax.fori_loop(0, 100, step, forced))["learning_rate"]

        return float(late())

    raw, averaged = late_rate("fgo"), late_rate("fgo_averaged")
    assert raw < averaged < 0.1
    assert late_rate("fgo_by_plateau") == raw
    assert late_rate("fgo_by_plateau_averaged") == averaged


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_a_short_run_of_a_network_with_each_rival(name, cheap_refinement, small_autoencoder):
    # The first 35 % of a known horizon must hold the warm-up of a hundred steps.
    task = small_autoencoder.shortened(300 if name.endswith("deadlines") else 60)
    curves = train(task, METHODS[name], {"learning_rate": 1e-3}, seed=100)
    assert np.isfinite(curves.raw).all()
    assert curves.raw[-1] < curves.raw[0]


def test_a_rival_ends_both_phases_with_its_state_afresh():
    # The weights shrink, bounce and settle twice; both turns must be seen again in re-ask.
    adam = optax.scale_by_adam()
    tx = fgo.target_acquisition(
        1e-3, 1, transform=adam, handover_steps=1, probe=rival_triggers.weight_norm(),
        triggers={"acquisition": rival_triggers.bounced(), "reask": rival_triggers.bounced()},
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
