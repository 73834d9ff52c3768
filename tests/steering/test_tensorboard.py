"""Telemetry of a whole run: from a scan, from a loop, and as TensorBoard reads it back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary import Writer
from tensorboard.util import tensor_util

import fgo_jax as fgo

STEPS = 30
PARAMS = {"w": jnp.ones(3)}


@pytest.fixture(scope="module")
def run():
    """The history of a scan, and the records of a loop over the same steps."""
    t = fgo.triggers
    plain = {"transform": optax.identity()}
    phases = [fgo.acquisition(0.1, 5, **plain), fgo.execution(0.1, **plain)]
    tx = fgo.phased(
        phases, [t.after(12)], fgo.probes.gradient_stream(pairs=4, width=8, every=2),
        handover_steps=4,
    )  # fmt: skip
    noise = jax.random.normal(jax.random.key(0), (STEPS, 3))

    def step(carry, noise):
        params, state = carry
        grads = {"w": params["w"] + noise}
        value = jnp.sum(params["w"] ** 2)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), fgo.telemetry(state)

    start = (PARAMS, tx.init(PARAMS))
    _, history = jax.jit(lambda carry: jax.lax.scan(step, carry, noise))(start)
    carry, records, step = start, [], jax.jit(step)
    for number in range(STEPS):
        carry, told = step(carry, noise[number])
        records.append(told)
    return jax.device_get(history), records


def test_a_scan_stacks_what_a_loop_lists(run):
    history, records = run
    listed = jax.tree.map(lambda *numbers: np.stack(numbers), *records)
    assert history.keys() == listed.keys()
    for name, numbers in history.items():
        assert numbers.shape == (STEPS,)
        assert numbers.dtype == listed[name].dtype
        np.testing.assert_allclose(numbers, listed[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_tensorboard_reads_back_every_number_of_a_run(run, tmp_path):
    _, records = run
    writer = Writer(str(tmp_path))
    for told in records:
        for name, number in told.items():
            writer.add_scalar(name, number, told["total_step"])
    writer.close()
    log = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    log.Reload()
    assert set(log.Tags()["tensors"]) == set(records[0])
    for name in records[0]:
        events = log.Tensors(name)
        assert [event.step for event in events] == list(range(1, STEPS + 1))
        read = [tensor_util.make_ndarray(event.tensor_proto) for event in events]
        written = [np.float32(told[name]) for told in records]
        np.testing.assert_array_equal(read, written, err_msg=name)
    phases = [float(tensor_util.make_ndarray(e.tensor_proto)) for e in log.Tensors("phase")]
    assert sorted(set(phases)) == [0.0, 1.0]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_keys_are_legal_tags(wrapped):
    """Other writers put an underscore for every other character, and strip a leading slash."""
    tx = fgo.target_acquisition(1e-2)
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    if wrapped:
        tx = optax.chain(optax.clip(1.0), optax.partition({"x": tx, "y": tx}, {"a": "x", "b": "y"}))
    told = jax.eval_shape(lambda params: fgo.telemetry(tx.init(params)), params)
    assert [name for name in told if not re.fullmatch(r"[\w.-][-/\w.]*", name)] == []
    if wrapped:
        assert "1/inner_states/x/inner_state/phase" in told
