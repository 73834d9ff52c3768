"""The calibration's synthetic streams and its simulation of a phase."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fgo_jax as fgo
from benchmarks.measurements.calibration import probe_noise, simulate, streams
from benchmarks.measurements.calibration.cases import NUM_STEPS, TRIGGERS
from benchmarks.measurements.calibration.streams import Course
from fgo_jax.probes import Estimate, Probe


def test_windows_close_where_the_cadence_says():
    expected, step, pairs = [], 0, 0
    while step + 1 < 3000:
        second = step + 1
        pairs += 1
        if pairs % 8 == 0:
            expected.append(second)
        step = second + max(2, math.floor(0.02 * second)) - 1
    np.testing.assert_array_equal(probe_noise.window_steps(3000), expected)


def test_a_course_has_the_planted_slopes():
    course = Course(-2.0, 1000, after=1.5, rest=3.0)
    steps = np.geomspace(50, 20_000, 4001) - 1.0
    slopes = np.gradient(course.log(steps), np.log(steps + 1.0))
    for low, high, slope in ((50, 990, -2.0), (1010, 2970, 1.5), (3030, 20_000, 0.0)):
        inside = (steps > low) & (steps < high)
        np.testing.assert_allclose(slopes[inside], slope, atol=1e-8)
    assert np.ptp(course.log(steps)[steps > 3030]) == 0.0


@pytest.mark.parametrize(("kind", "memory"), [("normal", 0.0), ("autoregressive", 0.7)])
def test_noise_has_unit_scale_and_its_memory(kind, memory):
    made = streams.noise(kind, np.random.default_rng(0), (4000, 20))
    # 4,000 runs: 1.6 % for a variance ratio's root, 1.6 % for a correlation; four of each.
    np.testing.assert_allclose(made.std(0), 1.0, atol=0.05)
    correlation = np.mean(made[:, 10] * made[:, 11])
    assert abs(correlation - memory) < 0.07


def test_heavy_tails_are_students():
    made = streams.noise("student", np.random.default_rng(0), (100, 100)).ravel()
    assert stats.kstest(made, stats.t(streams.STUDENT_FREEDOM).cdf).pvalue > 0.01


def test_signals_are_held_between_their_measurements():
    signal = fgo.triggers.Signal(*(np.array([[1.0, 2.0]]),) * 2, np.ones((1, 2), bool))
    held = streams.at(np.arange(6), np.array([1, 4]), signal)
    np.testing.assert_array_equal(held.value[0], [np.nan, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(held.fresh[0], [False, True, False, False, True, False])


def test_a_share_has_its_exact_interval():
    none = simulate.share(np.zeros(100, bool))
    # Clopper and Pearson: no event in n has the upper bound 1 - (alpha / 2)^(1 / n).
    np.testing.assert_allclose([none["low"], none["high"]], [0.0, 1.0 - 0.025 ** (1 / 100)])


def test_delays_count_what_never_fired_as_latest():
    steps = np.array([10, 20, 40, 80])
    late = simulate.delay(np.array([10, 40, 80, 80, np.inf, np.inf]), 20, steps)
    assert late["early"]["share"] == pytest.approx(1 / 6)
    assert late["median"] == {"step": 80, "factor": 4.0, "measurements": 3.0}
    assert math.isinf(late["quantile_90"]["step"])


def test_the_simulation_ends_phases_where_the_optimizer_does(toy_bank):
    # The shipped protocol on a probe that reads out a planted stream.
    steps, runs = 2000, 3
    windows = probe_noise.window_steps(NUM_STEPS)
    windows = windows[windows < steps]
    rng = np.random.default_rng(1)
    dimension = streams.dimension(Course(-1.0, 200), "normal", toy_bank, windows, runs, rng)
    agreement = streams.agreement(0.1, toy_bank, runs, len(windows), rng)
    loss = streams.metric(Course(-0.3), 0.1, "normal", np.arange(steps), runs, rng)
    planted = {"intrinsic_dimension": dimension, "agreement": agreement}

    def trained(planted, loss):
        tx = fgo.target_acquisition(
            1e-3, transform=optax.identity(), probe=_planted(planted), average_weights=0.1
        )

        def step(state, value):
            grads = {"w": jnp.ones([2], jnp.float32)}
            return tx.update(grads, state, grads, value=value)[1], None

        state = tx.init({"w": jnp.ones([2], jnp.float32)})
        return jax.lax.scan(step, state, loss.value)[0].clock.started

    def _planted(signals):
        when = jnp.asarray(windows)
        return Probe(
            signals=tuple(signals),
            init=lambda params: _Count(jnp.zeros([], jnp.int32)),
            due=lambda state, step: jnp.any(step == when),
            measure=lambda inputs, state: _Count(state.evaluations + 1),
            read=lambda state: {
                name: Estimate(*(
                    jnp.where(state.evaluations > 0, leaf[state.evaluations - 1], jnp.nan)
                    for leaf in (signal.value, signal.error)
                ))
                for name, signal in signals.items()
            },
        )  # fmt: skip

    started = np.asarray(jax.jit(jax.vmap(trained))(planted, loss))
    assert (started > 0).any(axis=0)[1:].all()
    looks = np.arange(steps)
    seen = {name: streams.at(looks, windows, signal) for name, signal in planted.items()}
    seen["loss"] = loss
    first = simulate.fired(TRIGGERS["acquisition"], looks, seen)
    np.testing.assert_array_equal(started[:, 1], np.where(np.isinf(first), -1, first + 1))
    for run, begun in enumerate(started[:, 1]):
        if begun < 0:
            continue
        own = jax.tree.map(lambda leaf, run=run: leaf[run : run + 1], seen)
        reask = TRIGGERS["reask"]._replace(start=int(begun))
        (second,) = simulate.fired(reask, looks, own)
        assert started[run, 2] == (-1 if np.isinf(second) else second + 1)


class _Count(NamedTuple):
    evaluations: jax.Array
