"""A run in words."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo
from tests.problems import train

t = fgo.triggers


def protocol(**options):
    """Of a transform that is quick to compile: no line is about it."""
    return fgo.target_acquisition(1e-2, 10, transform=optax.scale_by_adam(), **options)


def lines(tx, steps, **options):
    return fgo.explain(train(tx, steps, **options)[1]).splitlines()


def test_a_running_phase_says_what_it_waits_for_with_numbers():
    tx = protocol(triggers={"acquisition": t.below("agreement", -9.0)})
    said = lines(tx, 60)
    assert said[0] == "In acquisition since step 0; now at step 60, learning rate 0.01."
    assert said[1].startswith("Waits for: agreement below -9 (now ")
    assert " +- " in said[1]
    assert len(said) == 2


def test_what_was_never_measured_is_said():
    said = lines(protocol(), 3, extras=lambda *args: {})
    assert said[1] == (
        "Not known yet: agreement below 0.75 (not measured yet); intrinsic dimension stopped "
        "falling (not measured yet)."
    )
    assert said[2] == "Holds: not loss increasing (not measured yet)."


def test_a_finished_run_says_when_and_why_each_phase_began():
    first, second = t.after(19), t.after(49)
    tx = protocol(triggers={"acquisition": first, "reask": second, "execution": t.after(0)})
    said = lines(tx, 90)
    assert said[0].startswith("In execution since step 70; now at step 90, learning rate 0.0")
    assert said[1:] == [
        "Holds: after 0.",
        "Its trigger has fired: stop.",
        "Reask began at step 20: its trigger held.",
        "Execution began at step 70: its trigger held.",
    ]


def test_deadlines_hands_handovers_and_skipped_steps_are_said():
    phases = [fgo.acquisition(1e-2), fgo.reask(1e-2, transform=optax.scale_by_rms())]
    tx = fgo.phased(phases, [t.never()], total_steps=100, deadlines=[0.1])
    params = {"w": jnp.ones(3)}
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(11):
        _, state = update(params, state, params)
    _, state = update({"w": jnp.full(3, jnp.nan)}, state, params)
    assert fgo.explain(state).splitlines()[1:] == [
        "Hand-over, steps left: 39. The transform of acquisition makes the updates while the next "
        "one's statistics fill.",
        "No phase comes after it.",
        "Reask began at step 10: its deadline had come.",
        "Steps skipped, as gradients or loss were not finite or overflowed: 1.",
    ]
    state = fgo.force_phase(state, 0)
    _, state = update(params, state, params)
    assert "Acquisition began at step 12: it was asked for by hand." in fgo.explain(state)


def test_wrong_states_say_what_to_do():
    state = fgo.target_acquisition(1e-2).init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(lambda s: fgo.explain(s) and s)(state)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(ValueError, match="several runs"):
        fgo.explain(stacked)
