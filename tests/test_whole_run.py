"""A whole training inside one scan: traced once, no callbacks, phases ended by triggers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from benchmarks.methods import METHODS
from benchmarks.tasks import get_task
from fgo_jax.controller.state import BY_TRIGGER


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


def counted(step):
    """The step, and a list that grows by one whenever Python runs its body."""
    traces = []

    def counting(*arguments):
        traces.append(step)
        return step(*arguments)

    return counting, traces


@pytest.mark.parametrize(("start", "times"), [(jnp.float32(0), 1), (0, 2)])
def test_scan_traces_once_what_keeps_its_types(start, times):
    # A weak integer that the body turns into a float is traced anew: the count below sees such.
    step, traces = counted(lambda carry, _: (carry + jnp.float32(1), None))
    jax.jit(lambda: jax.lax.scan(step, start, length=3)).lower()
    assert len(traces) == times


def train_in_one_scan(tx, params, data, batch_of, loss, steps):
    """Final state and phases, after checks of what the whole run is made of."""
    tx = optax.with_extra_args_support(tx)

    def update(carry, number):
        params, state, data = carry
        batch = batch_of(data, number)
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, batch=batch)
        return (optax.apply_updates(params, updates), state, data), state.clock.phase

    step, traces = counted(update)

    def run(params, data):
        (params, state, _), phases = jax.lax.scan(
            step, (params, tx.init(params), data), jnp.arange(steps)
        )
        return params, state, phases

    traced = jax.jit(run).trace(params, data)
    assert not callbacks(traced.jaxpr.jaxpr)
    compiled = traced.lower().compile()
    with jax.transfer_guard("disallow"):
        params, state, phases = compiled(params, data)
    assert len(traces) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    return state, np.asarray(phases)


def problem(task, tx):
    """The arguments of `train_in_one_scan` for a task of the benchmarks."""
    init_key, key = jax.random.split(jax.random.key(0))
    params, data = jax.jit(task.init)(init_key), (task.data(0), key)
    return tx, params, data, lambda d, number: task.batch(*d, number), task.loss


def assert_both_transitions_fired(state, phases):
    assert set(phases.tolist()) == {0, 1, 2}
    assert (np.diff(phases) >= 0).all()
    np.testing.assert_array_equal(np.asarray(state.clock.causes[1:]), BY_TRIGGER)
    assert int(state.skipped_steps) == 0


@pytest.mark.slow
# Both transitions are over at step 170; the rest is execution.
@pytest.mark.parametrize(
    ("name", "learning_rate", "steps"), [("quadratic_bowl", 0.5, 600), ("digits_vit", 1.2e-2, 300)]
)
def test_default_protocol(name, learning_rate, steps):
    task = get_task(name)
    tx = METHODS["fgo"].build(task, {"learning_rate": learning_rate})
    state, phases = train_in_one_scan(*problem(task, tx), steps=steps)
    assert_both_transitions_fired(state, phases)


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["lanczos", "hutchinson"])
def test_a_probe_that_runs_the_model_decides(probe):
    task = get_task("quadratic_bowl")
    fisher = fgo.curvature.ggn(
        lambda params, batch: task.predict(params, batch)[:, None], "squared_error"
    )
    make = {
        "lanczos": lambda: fgo.probes.lanczos(fisher, num_steps=8, every=10, examples=16),
        "hutchinson": lambda: fgo.probes.hutchinson(fisher, num_samples=4, every=10, examples=16),
    }[probe]
    t = fgo.triggers
    tx = fgo.target_acquisition(
        0.1,
        task.warmup_steps,
        probe=make(),
        triggers={
            "acquisition": t.stopped_falling("intrinsic_dimension"),
            "reask": t.stall("intrinsic_dimension"),
        },
    )
    state, phases = train_in_one_scan(*problem(task, tx), steps=1000)
    assert_both_transitions_fired(state, phases)
