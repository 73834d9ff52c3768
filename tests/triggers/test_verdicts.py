"""Verdicts against their definitions, and what a distrusted measurement leaves behind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.triggers import Observation, Signal
from tests.problems import trees_equal

t = fgo.triggers
BEGUN = 300  # updates before the phase that the trigger is of
STEPS = BEGUN + np.arange(0, 1500, 40)


def followed(trigger, values, errors=None, fresh=None, steps=STEPS):
    """Verdicts after each measurement of streams [stream, measurement], and the last states."""
    values = jnp.atleast_2d(jnp.asarray(values, jnp.float32))
    count = values.shape[1]
    errors = np.full(count, np.nan) if errors is None else errors
    fresh = np.ones(count, bool) if fresh is None else fresh
    stream = (jnp.asarray(errors, jnp.float32), jnp.asarray(fresh), jnp.asarray(steps[:count]))

    def look(state, item):
        value, error, new, step = item
        seen = Observation({"x": Signal(value, error, new)}, step - BEGUN, step)
        verdict, state = trigger.update(seen, state)
        return state, verdict

    @jax.jit
    @jax.vmap
    def run(values):
        return jax.lax.scan(look, trigger.init(), (values, *stream))

    states, verdicts = run(values)
    return np.asarray(verdicts), states


def interval(times, values, memory, z):
    """Slope, margin and effective points of a series up to now, from all of its points."""
    w = np.exp(-(times[-1] - times) / memory)
    points = w.sum() ** 2 / (w**2).sum()
    centred = times - np.average(times, weights=w)
    spread = np.average(centred**2, weights=w)
    if len(times) < 3 or points <= 3:
        return 0.0, np.inf, points
    slope = np.average(centred * values, weights=w) / spread
    residual = values - np.average(values, weights=w) - slope * centred
    freedom = max(points - 2, 1)
    error = np.sqrt(np.average(residual**2, weights=w) / (spread * freedom))
    q = z * (8 * freedom + 3) / (8 * freedom + 1)
    return slope, np.sqrt(freedom * np.expm1(min(q**2 / freedom, 80))) * error, points


RULES = {
    "stall": (t.stall, 4, lambda s, m: (abs(s) + m - 1, 1 - abs(s) + m)),
    "stopped_falling": (t.stopped_falling, 4, lambda s, m: (-s + m - 1, s + m + 1)),
    "decreasing": (t.decreasing, 8, lambda s, m: (s + m, -s - m)),
    "increasing": (t.increasing, 8, lambda s, m: (m - s, s - m)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_trend_says_what_its_confidence_interval_says(name):
    make, least, rule = RULES[name]
    logarithm = least == 4
    z, memory = (1.282, 0.7) if logarithm else (1.645, 0.5)
    rng = np.random.default_rng(0)
    times = np.log(STEPS + 1.0)
    slopes = np.array([[-2.5], [-1.5], [-1.0], [-0.4], [0.0], [0.4], [1.0], [1.5], [2.5]])
    logs = slopes * times + 0.15 * rng.standard_normal((9, len(times)))
    values = np.float32(np.exp(logs) if logarithm else logs)
    series = np.log(np.float64(values)) if logarithm else np.float64(values)
    verdicts, _ = followed(make("x"), values)
    compared = {-1: 0, 0: 0, 1: 0}
    for found, stream in zip(verdicts, series, strict=True):
        streak = 0
        for now, verdict in enumerate(found):
            slope, margin, points = interval(times[: now + 1], stream[: now + 1], memory, z)
            # Negative where it holds, and where it fails; near zero float32 may differ.
            gaps = rule(slope, margin)
            known = points >= least
            streak = streak + 1 if known and gaps[0] < 0 else 0
            wanted = 1 if streak >= 2 else -1 if known and gaps[1] <= 0 else 0
            if min(abs(gaps[0]), abs(gaps[1])) < 2e-3 and np.isfinite(margin):
                streak = streak if verdict == wanted else int(verdict == 1)
                continue
            assert verdict == wanted, (now, slope, margin)
            compared[wanted] += 1
    assert min(compared.values()) >= 8, compared


@pytest.mark.parametrize("make", [t.stall, t.plateau, functools.partial(t.below, threshold=5.0)])
def test_a_distrusted_measurement_leaves_no_trace_but_the_streak(make):
    values = np.concatenate([np.ones(9), [1e-3], np.ones(5), [0.5, 0.5]])
    odd = np.arange(len(values)) == 9
    trigger = make("x", patience=2)
    verdicts, distrusted = followed(trigger, values, errors=np.where(odd, np.inf, 0.01))
    plain, absent = followed(trigger, values, np.full(len(values), 0.01), fresh=~odd)
    (seen,), (never_seen,) = distrusted.values(), absent.values()
    assert trees_equal(seen.memory, never_seen.memory)
    assert plain[0, 8] == 1
    # Two more measurements are needed; until then, and between measurements, nothing is known.
    np.testing.assert_array_equal(verdicts[0, 9:12], [0, 0, 1])


def test_distrust_between_measurements_lasts():
    fresh = np.array([True, True, True, False, False])
    errors = np.array([0.0, 0.0, np.inf, np.inf, np.inf])
    found, _ = followed(t.below("x", 5.0), np.ones(5), errors, fresh)
    np.testing.assert_array_equal(found[0], [0, 1, 0, 0, 0])


def test_a_streak_has_no_gaps_and_unknown_is_no_failure():
    # The error of the middle one leaves both sides possible.
    found, _ = followed(t.above("x", 1.0), [2, 2, 2, 0, 2, 2], np.array([0, 9, 0, 0, 0, 0]))
    np.testing.assert_array_equal(found[0], [0, 0, 0, -1, 0, 1])
    found, _ = followed(t.above("x", 1.0, patience=3), [2, 2, 0, 2, 2, 2])
    np.testing.assert_array_equal(found[0], [0, 0, -1, 0, 0, 1])


def test_inside_its_bound_a_threshold_neither_holds_nor_fails():
    for trigger, sign in ((t.above("x", 0.0, patience=1), 1), (t.below("x", 0.0, patience=1), -1)):
        found, _ = followed(trigger, [2.0, 1.6, 0.0, -1.6, -2.0], np.ones(5))
        np.testing.assert_array_equal(sign * found[0], [1, 0, 0, 0, -1])


def test_after_counts_the_updates_of_its_phase():
    found, _ = followed(t.after(80), np.zeros(4))
    np.testing.assert_array_equal(found[0], [-1, -1, 1, 1])


def test_a_plateau_is_measured_from_the_best_value_and_not_from_the_last():
    found, _ = followed(t.plateau("x", patience=3), [1.0, 3.0, 2.0, 1.5, 0.5])
    np.testing.assert_array_equal(found[0], [-1, 0, 0, 1, -1])


def test_a_fixed_verdict_is_shown_as_the_conditions_own():
    trigger = t.if_given(t.increasing("x"), "x", otherwise=-1)
    verdict, state = trigger.update(Observation({}, jnp.int32(1), jnp.int32(1)), trigger.init())
    assert int(verdict) == int(state["x_increasing"].verdict) == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_validation_that_is_no_number_is_no_report_without_improvement(bad):
    found, _ = followed(t.plateau("x", patience=2), [1.0, bad, bad, bad, 1.0, 1.0])
    np.testing.assert_array_equal(found[0], [-1, -1, -1, -1, 0, 1])


def test_an_optional_signal_needs_no_probe_that_measures_it():
    below = t.if_given(t.below("agreement", 0.75), "agreement", otherwise=1)
    phases = [fgo.acquisition(1.0, transform=optax.identity()), fgo.execution(1.0)]
    tx = fgo.phased(phases, [below])
    state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[1]
    assert int(state.clock.phase) == 1
