"""The phases' state machine under any stream: gradients, losses, validations and hands."""

import copy
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.controller.clock_model import NOTHING, Model, limits
from tests.controller.phased_examples import Example, examples
from tests.controller.phased_runs import STRUCTURES, at, decisions, program
from tests.streams import STEPS

FAST = ("own transforms and a horizon", "one transform")
structures = pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in STRUCTURES]
)
NAMES = {  # of phases, as telemetry has them
    name: ("acquisition", "reask", "execution") for name in STRUCTURES
} | {
    "four phases": ("acquisition", "reask", "polish", "execution"),
    "execution alone": ("execution",),
}


class Run(NamedTuple):
    """An example and its whole run, as numpy arrays."""

    example: Example
    inputs: dict[str, np.ndarray]
    begun: Any
    ended: Any
    record: dict[str, Any]


def drawn(name, data):
    example = data.draw(examples(len(STRUCTURES[name].verdicts)))
    start, walk, _, read = program(name)
    n, inputs = example.numbers, example.inputs()
    begun = start(n, inputs)
    ended = walk(n, begun, inputs, 0, STEPS)
    return Run(example, inputs, begun, ended, read(n, ended, inputs))


def taken_steps(name, inputs):
    """Which steps a run has to take: squares of gradients and of the loss do not overflow."""
    with np.errstate(invalid="ignore", over="ignore"):
        grads = inputs["grads"].astype(STRUCTURES[name].dtype).astype(np.float64)
        sums = np.sum(grads**2, axis=1) + inputs["value"].astype(np.float64) ** 2
    return sums < 1e36


def same_bits(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@structures
@given(data=st.data())
def test_every_run_keeps_the_rules(name, data):
    """One run for each example, which is most of the work, and all that must hold of it."""
    run = drawn(name, data)
    the_clock_follows_its_rules(name, run)
    what_holds_at_every_step(name, run)
    a_run_is_a_function_of_its_state(name, run, data.draw(st.integers(0, STEPS)))
    if name not in FAST:  # a second program; these have the same parts in other combinations
        step_by_step_is_the_scan(name, run)


def the_clock_follows_its_rules(name, run):
    example, inputs, _, _, record = run
    structure, n = STRUCTURES[name], example.numbers
    phases = len(structure.verdicts)
    model = Model(
        structure.minima(n),
        limits(structure.shares, n["total"], phases),
        structure.transform_of,
        n["handover"],
    )
    fields = (
        "total_step", "phase", "phase_step", "requested_phase", "driver", "driver_since",
        "handover_left", "started", "causes", "stop_flag", "grafted",
    )  # fmt: skip
    prefixes = [f"condition/{phase}/" for phase in NAMES[name]]
    told = [
        {key.removeprefix(p): value for key, value in record["told"].items() if key.startswith(p)}
        for p in prefixes
    ]
    expected = {field: [] for field in fields}
    for step, taken in enumerate(taken_steps(name, inputs)):
        model.act(inputs["act"][step])
        if taken:
            now = {key: int(value[step]) for key, value in told[model.phase].items()}
            model.update(structure.verdicts[model.phase](now, n))
        for field in fields:
            expected[field].append(copy.copy(getattr(model, field)))
    for field in fields:
        got = getattr(record["clock"], field)
        np.testing.assert_array_equal(got, expected[field], err_msg=field)


def what_holds_at_every_step(name, run):
    example, inputs, _, _, record = run
    taken = taken_steps(name, inputs)
    clock, told = record["clock"], record["told"]
    phases = len(STRUCTURES[name].verdicts)
    by_hand = inputs["act"] != NOTHING

    # A skipped step changes its counter alone and moves nothing.
    np.testing.assert_array_equal(record["skipped"], np.cumsum(~taken))
    assert not record["changed"][~taken].any()
    assert not record["moved"][~taken].any()
    # Whatever came before, updates and means are finite.
    assert not record["infinite"].any()

    # Phases: in range, one after the other, each by its deadline; otherwise only by hand.
    phase = clock.phase.astype(int)
    assert ((phase >= 0) & (phase < phases)).all()
    moves = np.diff(phase, prepend=0)
    if not by_hand.any():
        assert np.isin(moves, (0, 1)).all()
        for index, share in enumerate(STRUCTURES[name].shares):
            latest = np.ceil(share * example.numbers["total"]) + index * example.numbers["handover"]
            assert (phase[clock.total_step > latest + index] > index).all()

    # The rate: finite, never above the peak, not above the warm-up.
    rate, peak = told["learning_rate"], np.float32(example.numbers["rate"])
    assert ((rate >= 0) & (rate <= peak * (1 + 1e-5))).all()
    if not by_hand.any() and name != "execution alone":
        ramp = np.minimum(np.arange(1, STEPS + 1) / max(example.numbers["warmup"], 1), 1)
        first = (clock.total_step > 0) & (phase == 0)
        assert (rate <= peak * ramp[np.maximum(clock.total_step - 1, 0)] * (1 + 1e-5))[first].all()

    # Telemetry: numbers. A signal is NaN until measured, and one of the probe's where the last
    # window told nothing. Only a validation is whatever was passed.
    for key, value in told.items():
        known = ~np.isnan(value.astype(np.float64))
        assert key == "validation" or not np.isinf(value[known]).any(), key
        if key in ("loss", "validation"):
            assert (np.diff(known.astype(int)) >= 0).all(), key
        elif key.startswith("bound/"):  # one number for the whole run, or none
            assert (value == value[0]).all() or not known.any(), key
        else:
            assert known.all() or key in (*record["errors"], "energy_exponent", "cosine"), key


def a_run_is_a_function_of_its_state(name, run, stop):
    """Again is the same bit for bit, and so is a run that was saved, loaded and continued."""
    example, inputs, begun, ended, _ = run
    _, walk, *_ = program(name)
    half, record = walk(example.numbers, begun, inputs, 0, stop)
    saved = flax.serialization.to_bytes(half)
    loaded = flax.serialization.from_bytes(begun[0], saved)
    again = walk(example.numbers, (loaded, record), inputs, stop, STEPS)
    assert same_bits(again, ended)


def step_by_step_is_the_scan(name, run):
    """Another program, so rounding may differ; the first decisions do not."""
    _, _, step, _ = program(name)
    carry, alone = run.begun[0], []
    for number in range(8):
        carry, told = step(run.example.numbers, carry, at(run.inputs, number))
        alone.append(told)
    decided, rates = (np.stack(rows) for rows in zip(*jax.device_get(alone), strict=True))
    scanned, rate = decisions(run.record)
    scanned = np.concatenate([x[:8].reshape(8, -1) for x in scanned], axis=1)
    np.testing.assert_array_equal(decided, scanned)
    np.testing.assert_allclose(rates[:, 0], rate[:8], rtol=1e-5)
