"""Steering by hand, on states alone; and what a stack of runs tells."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fgo_jax as fgo

PHASES = ("acquisition", "reask", "execution")


@pytest.fixture(scope="module")
def state():
    tx = fgo.target_acquisition(1e-3, transform=optax.identity())
    return tx.init({"w": jnp.zeros(2)})


def with_clock(state, **changes):
    return state._replace(clock=state.clock._replace(**changes))


def test_several_runs_stop_when_all_have(state):
    stopped = with_clock(state, stop_flag=jnp.asarray(True))
    assert not bool(fgo.should_stop((stopped, state)))
    assert bool(fgo.should_stop((stopped, stopped)))


@pytest.mark.parametrize("index", range(3))
def test_a_phase_is_asked_for_by_name_or_number_and_is_not_stopped(state, index):
    stopped = with_clock(state, stop_flag=jnp.asarray(True))
    for phase in (index, PHASES[index]):
        forced = fgo.force_phase(stopped, phase)
        assert int(forced.clock.requested_phase) == index
        assert not bool(fgo.should_stop(forced))


def test_a_restart_begins_the_clock_anew_and_judges_nothing_yet(state):
    judged = jax.tree.map(
        lambda condition: condition._replace(counts=jnp.asarray([1, 5], jnp.int32)),
        state.trigger_states,
        is_leaf=lambda node: isinstance(node, fgo.triggers.ConditionState),
    )
    late = with_clock(state, total_step=jnp.int32(9), phase=jnp.int32(2))
    again = fgo.restart(late._replace(trigger_states=judged, skipped_steps=jnp.int32(4)))
    jax.tree.map(np.testing.assert_array_equal, again.clock, state.clock)
    told = fgo.telemetry(again)
    assert all(int(told[name]) == 0 for name in told if name.startswith("condition/"))
    # What was learned or counted over all runs stays.
    assert int(told["skipped_steps"]) == 4


def test_by_hand_a_state_stays_where_it_is_on_a_mesh(state):
    home = NamedSharding(jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,)), PartitionSpec())
    state = jax.device_put(state, home)
    for new in (fgo.restart(state), fgo.force_phase(state, 1), jax.jit(fgo.restart)(state)):
        for leaf in jax.tree.leaves(new):
            assert leaf.sharding == home  # otherwise the next step compiles again


def test_a_stack_of_runs_tells_a_number_for_each(state):
    other = with_clock(state, started=jnp.int32([0, 30, 70]), causes=jnp.int32([4, 1, 2]))
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other)
    told, alone = fgo.telemetry(stack), [fgo.telemetry(run) for run in (state, other)]
    for name, numbers in told.items():
        np.testing.assert_array_equal(numbers, jnp.stack([run[name] for run in alone]), name)
    assert not bool(jnp.any(fgo.should_stop(stack)))


@pytest.mark.parametrize("total_steps", [None, 1_000_000])
def test_a_phase_forced_soon_decays_as_slowly_with_a_horizon(total_steps):
    phases = [
        fgo.acquisition(1.0, transform=optax.identity()),
        fgo.execution(1.0, cut=0.0, transform=optax.identity()),
    ]
    tx = fgo.phased(
        phases, [fgo.triggers.never()], min_steps=1000, handover_steps=4, total_steps=total_steps
    )
    params = jnp.ones(2)

    def step(state, _):
        state = tx.update(params, state, params)[1]
        return state, state.fgo_learning_rate

    state, _ = step(tx.init(params), None)
    forced = fgo.force_phase(state, "execution")
    _, rates = jax.jit(lambda state: jax.lax.scan(step, state, length=102))(forced)
    # The hundred steps are a tenth of the thousand that come before the phase by triggers.
    assert float(rates[-1]) == pytest.approx(1 / 1.1, rel=0.01)


def test_after_a_restart_the_slow_momentum_begins_anew():
    phase = fgo.Phase("constant", lambda progress: 1.0, optax.identity(), slow_share=0.5)
    tx = fgo.phased([phase], [])
    params = jnp.ones(3)
    state = jax.lax.scan(
        lambda state, _: (tx.update(params, state, params)[1], None), tx.init(params), length=30
    )[0]
    assert float(state.slow.share) > 0
    updates, state = tx.update(-params, fgo.restart(state), params)
    np.testing.assert_array_equal(updates, params)  # nothing of the old directions
    assert int(state.slow.averaged_steps) == 1


def test_a_phase_is_named_outside_of_jit(state):
    with pytest.raises(ValueError, match="phase decides what is computed"):
        jax.jit(fgo.force_phase)(state, 1)


def horizon():
    plain = optax.identity()
    phases = [fgo.acquisition(0.1, transform=plain), fgo.execution(0.1, transform=plain)]
    return fgo.phased(phases, [fgo.triggers.never()], total_steps=100)


def after(tx, state, steps):
    params = jnp.ones(2)

    def step(state, _):
        return tx.update(params, state, params)[1], None

    return jax.lax.scan(step, state, length=steps)[0]


def test_a_deadline_that_has_passed_does_not_end_a_phase_entered_by_hand():
    tx = horizon()
    state = after(tx, tx.init(jnp.ones(2)), 80)
    assert int(state.clock.phase) == 1
    state = after(tx, fgo.force_phase(state, "acquisition"), 10)
    assert int(state.clock.phase) == 0
    soon = after(tx, fgo.force_phase(tx.init(jnp.ones(2)), "acquisition"), 80)
    assert int(soon.clock.phase) == 1  # entered in time, it ends in time


def test_a_restart_drops_what_micro_batches_have_brought():
    tx = fgo.accumulate(horizon(), 4)
    params = jnp.ones(2)
    _, state = tx.update(params, tx.init(params), params, value=3.0, validation_value=1.0)
    again = fgo.restart(state)
    assert int(again.micro_step) == int(again.loss_count) == float(again.loss_sum) == 0
    np.testing.assert_array_equal(again.first_sum, jnp.zeros(2))
    assert np.isnan(again.reported)
