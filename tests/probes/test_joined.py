"""Joined probes measure what each measures alone, and triggers see when."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.problems import mlp_loss, mlp_params, mlp_step

STEPS, SNAPSHOTS = 48, 4
PROBES = {
    "stream": fgo.probes.gradient_stream(every=2),
    "path": fgo.probes.trajectory(every=5, snapshots=SNAPSHOTS, width=16),
    "order": fgo.probes.commutator(mlp_loss, 7, pairs=2, examples=8, snapshots=4, width=16),
}
SIGNALS = {
    "stream": "intrinsic_dimension",
    "path": "path_dimension",
    "order": "commutator_defect",
}


def counting(signals):
    """Never holds, and counts the steps at which each signal is new."""

    def judge(observation, counts):
        fresh = [observation.signals[signal].fresh for signal in signals]
        yes = jnp.asarray(True)
        return yes, ~yes, yes, counts + jnp.stack(fresh).astype(jnp.int32)

    start = jnp.zeros(len(signals), jnp.int32)
    return fgo.triggers.condition("counted", lambda: start, judge, signals=tuple(signals))


def followed(probe, signals):
    """Every estimate, and how often each signal was new, after each of the steps."""
    adam = optax.scale_by_adam()
    phases = [fgo.acquisition(1e-3, transform=adam), fgo.execution(1e-3, transform=adam)]
    tx = fgo.phased(phases, [counting(signals)], probe)
    step = mlp_step(tx, lambda value, batch, number: {"value": value, "batch": batch})

    def told(carry, number):
        (params, state), _ = step(carry, number)
        fgo_state: Any = state
        return (params, state), (fgo_state.signals, fgo_state.trigger_states)

    params = mlp_params()
    scan = jax.jit(lambda carry: jax.lax.scan(told, carry, jnp.arange(STEPS))[1])
    read, states = jax.device_get(scan((params, tx.init(params))))
    (counts,) = [x for x in jax.tree.leaves(states) if x.shape == (STEPS, len(signals))]
    return read, counts


@pytest.fixture(scope="module")
def together():
    return followed(fgo.probes.joined(*PROBES.values()), list(SIGNALS.values()))


@pytest.mark.parametrize("name", PROBES)
def test_each_measures_and_is_seen_by_triggers_as_it_is_alone(together, name):
    read, counts = together
    alone, own = followed(PROBES[name], [SIGNALS[name]])
    number = list(PROBES).index(name)
    np.testing.assert_array_equal(counts[:, number], own[:, 0])
    assert 2 <= own[-1, 0] < STEPS / 2
    shared = PROBES["path"].signals if name == "order" else ()
    for key in set(PROBES[name].signals).difference(shared):
        np.testing.assert_allclose(read[key], alone[key], rtol=1e-5, atol=1e-6)
    assert np.isfinite(read[SIGNALS[name]][-1, 0])


def test_it_asks_for_what_its_members_ask_for_and_renews_them():
    probe = fgo.probes.joined(*PROBES.values())
    assert set(probe.requires) == {"params", "batch"}
    assert len(set(probe.signals)) == len(probe.signals)
    assert set(probe.signals) == {s for one in PROBES.values() for s in one.signals}
    state = probe.init(mlp_params())
    begun = state._replace(
        members=(state.members[0]._replace(half=jnp.ones([], jnp.int32)), *state.members[1:])
    )
    # Two measure it, so it is the first one's.
    members = tuple(s._replace(evaluations=jnp.int32(i)) for i, s in enumerate(state.members))
    assert int(probe.counter(state._replace(members=members), "path_dimension")) == 1
    renewed, own = probe.renew(begun), PROBES["stream"].renew(begun.members[0])
    jax.tree.map(np.testing.assert_array_equal, renewed.members[0], own)


@pytest.mark.parametrize("wrong", [(), ("gradient_stream",), ([PROBES["path"]],)])
def test_what_is_no_probe_is_refused(wrong):
    with pytest.raises(ValueError, match="one or more probes"):
        fgo.probes.joined(*wrong)


def test_it_measures_over_an_axis_of_devices():
    probe = fgo.probes.joined(fgo.probes.gradient_stream(pairs=4), PROBES["path"])
    tx = fgo.phased(
        [fgo.acquisition(0.1, transform=optax.identity())], [], probe, axis_name="devices"
    )
    alone = fgo.phased([fgo.acquisition(0.1, transform=optax.identity())], [], probe)
    params = jnp.ones(3)

    def signals(tx):
        state = tx.init(params)
        for number in range(12):
            grads = jnp.cos(jnp.arange(3.0) + number)
            _, state = tx.update(grads, state, params)
        return state.signals

    spread = jax.vmap(lambda _: signals(tx), axis_name="devices")(jnp.arange(2))
    for name, found in jax.jit(lambda: signals(alone))().items():
        np.testing.assert_allclose(spread[name], [found, found], rtol=1e-6)
    assert np.isfinite(spread["agreement"]).all()


def test_a_joined_probe_inside_another_counts_by_its_members():
    inner = fgo.probes.joined(PROBES["stream"], PROBES["path"])
    outer = fgo.probes.joined(inner)
    state = outer.init(mlp_params())
    members = state.members[0].members
    counts = [
        member._replace(evaluations=jnp.int32(n)) for n, member in zip((3, 5), members, strict=True)
    ]
    state = state._replace(members=(state.members[0]._replace(members=tuple(counts)),))
    assert int(outer.counter(state, "path_dimension")) == 5
    assert int(outer.counter(state, "agreement")) == 3
