"""A whole training inside one scan: traced once, no callbacks, phases ended by triggers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from benchmarks.methods import get_method
from benchmarks.tasks import get_task
from fgo_jax.state import BY_TRIGGER


def callbacks(jaxpr) -> list[str]:
    """Names of all callback primitives in a jaxpr and in the jaxprs inside it."""
    return [name for name in primitives(jaxpr) if "callback" in name]


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def train_in_one_scan(task, tx, steps, seed=0):
    """Final state and phases, after checks of what the whole run is made of."""
    traces = 0
    tx = optax.with_extra_args_support(tx)

    def step(carry, number):
        nonlocal traces
        traces += 1
        params, state, data, key = carry
        batch = task.batch(data, key, number)
        value, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, batch=batch)
        return (optax.apply_updates(params, updates), state, data, key), state.phase

    def run(params, data, key):
        carry = (params, tx.init(params), data, key)
        (params, state, _, _), phases = jax.lax.scan(step, carry, jnp.arange(steps))
        return params, state, phases

    init_key, key = jax.random.split(jax.random.key(seed))
    arguments = (task.init(init_key), task.data(seed), key)
    lowered = jax.jit(run).trace(*arguments)
    assert not callbacks(lowered.jaxpr.jaxpr)
    compiled = lowered.lower().compile()
    traced = traces
    with jax.transfer_guard("disallow"):
        params, state, phases = compiled(*arguments)
    # `scan` itself traces its body a fixed number of times before the first step runs.
    assert traces == traced <= 2
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(params))
    return state, np.asarray(phases)


def assert_both_transitions_fired(state, phases):
    assert set(phases.tolist()) == {0, 1, 2}
    assert (np.diff(phases) >= 0).all()
    np.testing.assert_array_equal(np.asarray(state.causes[1:]), BY_TRIGGER)
    assert int(state.skipped_steps) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quadratic_bowl", "digits_vit"])
def test_default_protocol(name):
    task = get_task(name)
    tx = get_method("fgo").build(task, {"learning_rate": RATES[name]})
    state, phases = train_in_one_scan(task, tx, task.num_steps)
    assert_both_transitions_fired(state, phases)


RATES = {"quadratic_bowl": 0.5, "digits_vit": 1.2e-2}


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["lanczos", "hutchinson"])
def test_a_probe_that_runs_the_model_decides(probe):
    task = get_task("digits_vit")
    fisher = fgo.curvature.ggn(task.predict, loss=task.loss_name)
    make = {
        "lanczos": lambda: fgo.probes.lanczos(fisher, num_steps=8, every=25, examples=16),
        "hutchinson": lambda: fgo.probes.hutchinson(fisher, num_samples=4, every=25, examples=16),
    }[probe]
    t = fgo.triggers
    tx = fgo.target_acquisition(
        1.2e-2,
        100,
        probe=make(),
        acquisition_trigger=t.stopped_falling("intrinsic_dimension"),
        reask_trigger=t.stall("intrinsic_dimension"),
    )
    state, phases = train_in_one_scan(task, tx, 1500)
    assert_both_transitions_fired(state, phases)
