"""When phases end: one compiled run, steered by the losses and gradients that it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.state import AT_START, BY_DEADLINE, BY_TRIGGER
from tests.directions import Doubling

STEPS, HANDOVER, LEAST = 40, 4, 3
ENDS = (14, 16)  # deadlines; the second one falls into the hand-over that the first one opens


def losses(*spikes):
    """A loss of 2 after the given numbers of updates, and of 0 otherwise."""
    values = np.zeros(STEPS, np.float32)
    values[list(spikes)] = 2.0
    return values


STREAMS = {
    "no trigger": losses(),
    "trigger at the deadline": losses(ENDS[0] - 1),
    "trigger in the hand-over": losses(5, 6, 7, 8, 9),
    "trigger from the start": losses(0, 1, 2),
    "trigger in the last phase": losses(30),
    "bad gradient": losses(8),
}


@pytest.fixture(scope="module")
def runs():
    """The clock and the verdicts after every update, by stream."""
    first, second = Doubling.made(0.0), Doubling.made(1.0)
    holds = fgo.triggers.above("loss", 1.0, patience=1)
    tx = fgo.phased(
        [
            fgo.acquisition(1e-2, transform=first),
            fgo.reask(1e-2, transform=second),
            fgo.execution(1e-2, decay=fgo.decays.adaptive(), slow_share=0.5),
        ],
        [holds, holds, holds],
        handover_steps=HANDOVER,
        min_steps=LEAST,
        total_steps=STEPS,
        deadlines=[end / STEPS for end in ENDS],
    )
    params = jnp.ones(3)
    grads = np.ones((len(STREAMS), STEPS, 3), np.float32)
    grads[list(STREAMS).index("bad gradient"), 8] = np.nan

    def step(state, item):
        gradient, value = item
        _, state = tx.update(gradient, state, params, value=value)
        verdict = state.trigger_states["0_acquisition"]["loss_above"].verdict
        return state, (state.clock, verdict, state.fgo_learning_rate)

    @jax.jit
    @jax.vmap
    def run(state, grads, values):
        return jax.lax.scan(step, state, (grads, values))[1]

    start = tx.init(params)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * (len(STREAMS) + 1)), start)
    # One more stream: execution is forced where it had gone on for a while.
    late = start.clock._replace(
        phase=jnp.int32(2),
        driver=jnp.int32(2),
        phase_step=jnp.int32(30),
        decay_exponent=jnp.float32(0.7),
    )
    forced = fgo.force_phase(start._replace(clock=late), "execution").clock
    clocks = jax.tree.map(lambda all_of, one: all_of.at[-1].set(one), states.clock, forced)
    found = run(
        states._replace(clock=clocks),
        jnp.concatenate([jnp.asarray(grads), jnp.ones((1, STEPS, 3))]),
        jnp.stack([*STREAMS.values(), losses()]),
    )
    names = [*STREAMS, "forced"]
    return {
        name: jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), found)
        for i, name in enumerate(names)
    }


def test_deadlines_end_phases_on_time_but_not_inside_a_hand_over(runs):
    clock, _, _ = runs["no trigger"]
    end_of_handover = ENDS[0] + HANDOVER + 1
    np.testing.assert_array_equal(clock.started[-1], [0, ENDS[0], end_of_handover])
    np.testing.assert_array_equal(clock.causes[-1], [AT_START, BY_DEADLINE, BY_DEADLINE])


def test_a_trigger_that_holds_at_the_deadline_is_the_cause(runs):
    clock, _, _ = runs["trigger at the deadline"]
    assert clock.started[-1, 1] == ENDS[0]
    assert clock.causes[-1, 1] == BY_TRIGGER


def test_no_trigger_looks_during_a_hand_over(runs):
    clock, _, _ = runs["trigger in the hand-over"]
    # The first spike ends acquisition; the four after it come while the next transform fills.
    np.testing.assert_array_equal(clock.started[-1], [0, 6, ENDS[1]])
    np.testing.assert_array_equal(clock.causes[-1], [AT_START, BY_TRIGGER, BY_DEADLINE])


def test_a_phase_makes_exactly_its_least_number_of_updates(runs):
    clock, _, _ = runs["trigger from the start"]
    assert clock.started[-1, 1] == LEAST


def test_the_stop_flag_is_the_last_phases_and_stays_up(runs):
    clock, _, _ = runs["trigger in the last phase"]
    np.testing.assert_array_equal(clock.stop_flag, np.arange(STEPS) >= 30)
    for name in ("trigger from the start", "trigger in the hand-over", "no trigger"):
        assert not runs[name][0].stop_flag.any()


def test_a_skipped_step_gives_no_verdict(runs):
    clock, verdicts, _ = runs["bad gradient"]
    assert (verdicts[: ENDS[0]] == -1).all()
    # It is no update either.
    assert clock.started[-1, 1] == ENDS[0]
    assert clock.total_step[-1] == STEPS - 1


def test_a_phase_that_begins_again_decays_from_the_start(runs):
    clock, _, _ = runs["forced"]
    assert clock.phase_step[0] == 0
    assert clock.decay_exponent[0] == 0.0


def test_only_another_transform_needs_a_hand_over(runs):
    clock, _, _ = runs["no trigger"]
    wanted = np.zeros(STEPS)
    wanted[ENDS[0] - 1 : ENDS[0] + HANDOVER - 1] = np.arange(HANDOVER, 0, -1)
    np.testing.assert_array_equal(clock.handover_left, wanted)
    # The new transform drives, and counts its steps, from the end of its hand-over on.
    assert clock.driver_since[-1] == ENDS[0] + HANDOVER


def test_the_rate_that_a_phase_glides_from_stays_that_of_its_beginning(runs):
    clock, _, rates = runs["no trigger"]
    begins = ENDS[0] - 1
    np.testing.assert_array_equal(clock.entry_rate[begins : begins + HANDOVER], rates[begins])
    assert rates[begins + 1] < rates[begins]


def test_a_trigger_sees_the_signals_that_it_reads_and_no_others():
    seen = {}

    def watch(name, *signals):
        def judge(observation, memory):
            seen[name] = set(observation.signals)
            return jnp.asarray(True), jnp.asarray(False), jnp.asarray(True), memory

        return fgo.triggers.condition(name, tuple, judge, signals=signals)

    adam = optax.scale_by_adam()
    phases = [make(1e-3, transform=adam) for make in (fgo.acquisition, fgo.execution)]
    params = jnp.ones(3)
    both = watch("loss", "loss") & watch("noise", "trace")
    probe = fgo.probes.gradient_stream(pairs=4, width=8)
    for trigger, names in ((watch("alone", "loss"), {"loss"}), (both, {"loss", "trace"})):
        tx = fgo.phased(phases, [trigger], probe)
        state = tx.init(params)
        jax.eval_shape(tx.update, params, state, params, value=jnp.ones([]))
        assert all(found == names for found in seen.values())
        seen.clear()
