"""A phase that begins again, by a restart or by hand, remembers nothing of the run before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.state import AT_START, BY_HAND, NOT_BEGUN

t = fgo.triggers
PARAMS = {"w": jnp.ones(3)}
HANDOVER = 5


def updater(tx):
    update = jax.jit(tx.update)

    def go(state, steps=1, grads=PARAMS, **extras):
        for _ in range(steps):
            _, state = update(grads, state, PARAMS, **extras)
        return state

    return go


def two(trigger, **options):
    """Two phases with a hand-over between them; the second one's trigger raises the flag."""
    phases = [
        fgo.acquisition(0.1, transform=optax.identity()),
        fgo.reask(0.1, cut=0.0, transform=optax.trace(0.9)),
    ]
    return fgo.phased(phases, [t.never(), trigger], handover_steps=HANDOVER, **options)


UNKNOWN = jnp.float32(jnp.nan)


@pytest.mark.parametrize("way", ["restart", "force_phase"])
def test_a_verdict_of_the_run_before_ends_nothing(way):
    tx = two(t.below("validation", 1.0, patience=1))
    go = updater(tx)
    state = fgo.force_phase(tx.init(PARAMS), "reask")
    state = go(state, HANDOVER + 1, validation_value=UNKNOWN)
    state = go(state, validation_value=jnp.float32(0.5))
    assert bool(fgo.should_stop(state))
    if way == "restart":
        state = fgo.restart(state)
        conditions = jax.tree.leaves(state.trigger_states)
        assert not any(bool((x == 1).any()) for x in conditions if x.dtype == jnp.int32)
    state = go(fgo.force_phase(state, "acquisition"), 2, validation_value=UNKNOWN)
    # From here on nothing is measured: only the old verdict could raise the flag.
    state = go(fgo.force_phase(state, "reask"), HANDOVER + 3, validation_value=UNKNOWN)
    assert int(state.clock.phase) == 1
    assert not bool(fgo.should_stop(state))


def test_a_remembered_best_is_forgotten():
    tx = two(t.plateau("validation", patience=3))
    go = updater(tx)
    state = fgo.force_phase(tx.init(PARAMS), "reask")
    state = go(state, HANDOVER + 1, validation_value=UNKNOWN)
    state = go(state, validation_value=jnp.float32(0.1))
    state = fgo.force_phase(fgo.restart(state), "reask")
    state = go(state, HANDOVER + 1, validation_value=UNKNOWN)
    for number in range(6):  # better and better, but never as good as before
        state = go(state, validation_value=jnp.float32(9.0 - number))
    assert not bool(fgo.should_stop(state))


def test_the_flag_falls_when_a_phase_is_forced():
    tx = two(t.after(0))
    go = updater(tx)
    state = go(fgo.force_phase(tx.init(PARAMS), "reask"), HANDOVER + 2)
    assert bool(fgo.should_stop(state))
    state = fgo.force_phase(state, "acquisition")
    assert not bool(fgo.should_stop(state))
    assert not bool(fgo.should_stop(go(state, 3)))


def test_the_first_phase_began_with_the_run_and_by_nobodys_hand():
    tx = two(t.never())
    state = updater(tx)(tx.init(PARAMS), 3)
    np.testing.assert_array_equal(state.clock.causes, [AT_START, NOT_BEGUN])
    assert "by hand" not in fgo.explain(state)
    state = updater(tx)(fgo.force_phase(state, 0), 2)
    assert int(state.clock.causes[0]) == BY_HAND
    np.testing.assert_array_equal(fgo.restart(state).clock.causes, [AT_START, NOT_BEGUN])


DECAYS = {
    "hyperbolic": fgo.decays.hyperbolic,
    "linear": fgo.decays.linear,
    "cosine": fgo.decays.cosine,
    "adaptive": lambda: fgo.decays.adaptive(onset=0.0),
}


@pytest.mark.parametrize("name", DECAYS)
@pytest.mark.parametrize("again", [False, True])
def test_execution_forced_early_has_a_decay_of_a_sensible_length(name, again):
    tx = fgo.target_acquisition(
        0.1, 30, handover_steps=10, transform=optax.identity(), decay=DECAYS[name]()
    )
    go = updater(tx)
    state = tx.init(PARAMS)
    if again:
        state = fgo.restart(go(state, 20))
    state = go(fgo.force_phase(state, "execution"), 15)
    # Warm-up and hand-over, 40 steps, are its length: 14 steps are about a third of it.
    assert float(state.fgo_learning_rate) > 0.06


def test_a_phase_forced_back_has_no_graft_of_another_transform():
    long = optax.chain(optax.trace(0.0), optax.scale(100.0))
    phases = [
        fgo.Phase(name, lambda _: jnp.float32(0.1), transform)
        for name, transform in [
            ("a", optax.identity()), ("b", optax.trace(0.0)), ("c", long)
        ]
    ]  # fmt: skip
    tx = fgo.phased(phases, [t.never(), t.never()], handover_steps=HANDOVER)
    go = updater(tx)
    state = go(fgo.force_phase(tx.init(PARAMS), "c"), HANDOVER + 2)
    state = go(fgo.force_phase(state, "b"))
    updates, _ = tx.update(PARAMS, state, PARAMS)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-5)


def test_a_transform_put_in_charge_at_once_has_its_own_size():
    """Not that which it had to keep when it once took over in a hand-over."""
    signs = [optax.chain(optax.scale_by_sign(), optax.scale(size)) for size in (1.0, 10.0, 0.5)]
    phases = [
        dataclasses.replace(fgo.acquisition(0.1, transform=sign), name=name)
        for sign, name in zip(signs, "abc", strict=True)
    ]
    tx = fgo.phased(phases, [t.never(), t.never()], handover_steps=HANDOVER)
    go, update = updater(tx), jax.jit(tx.update)
    state = go(fgo.force_phase(tx.init(PARAMS), "b"), HANDOVER + 1)
    kept, _ = update(PARAMS, state, PARAMS)
    np.testing.assert_allclose(kept["w"], -0.1, rtol=1e-5)
    state = go(fgo.force_phase(state, "c"), 2 * HANDOVER + 2)
    back = go(fgo.force_phase(state, "b"))
    own, _ = update(PARAMS, back, PARAMS)
    np.testing.assert_allclose(own["w"], -1.0, rtol=1e-5)
