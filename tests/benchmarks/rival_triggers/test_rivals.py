"""Rival triggers against definitions in numpy, on planted series and planted walks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import rival_triggers as rivals
from fgo_jax import triggers as t
from fgo_jax.triggers import Observation
from tests.planted import fires, readings, walk

# --- plateau ---


def first_plateau(values, window, patience, rtol):
    """The definition, window by window."""
    best, bad = np.inf, 0
    for index in range(len(values) // window):
        mean = np.mean(values[index * window : (index + 1) * window])
        margin = rtol * abs(best) if np.isfinite(best) else 0.0
        best, bad = (mean, 0) if mean < best - margin else (best, bad + 1)
        if bad >= patience:
            return (index + 1) * window - 1
    return None


@pytest.mark.parametrize("level", [3.0, -3.0])
def test_a_plateau_is_one_of_means_and_of_any_sign(level):
    rng = np.random.default_rng(5)
    time = np.arange(600)
    flat_after = level + np.maximum(0.0, 1 - time / 200) + 0.3 * rng.standard_normal(600)
    trigger = rivals.plateau_of_means(window=10, patience=4, rtol=0.01)
    expected = first_plateau(flat_after, 10, 4, 0.01)
    assert expected is not None
    assert expected > 150
    assert fires(trigger, loss=flat_after) == expected
    falling = level - time / 100 + 0.3 * rng.standard_normal(600)
    assert fires(trigger, loss=falling) is None


def test_a_lucky_batch_is_no_best_mean():
    lucky = np.linspace(2.0, 1.0, 400)
    lucky[3] = -50.0
    # One batch spoils its window for good, not all that follow a raw minimum of -50.
    trigger = rivals.plateau_of_means(window=5, patience=3, rtol=0.0)
    lucky[4] = 54.0
    assert fires(trigger, loss=lucky) is None
    assert fires(t.plateau("loss", patience=15, rtol=0.0), loss=lucky) is not None


# --- weight norm ---


def test_the_weight_norm_is_the_sum_of_squares():
    flat, path = walk(7, seed=6)
    evaluations, read = readings(rivals.weight_norm(every=3), path)
    np.testing.assert_array_equal(evaluations, [1, 1, 1, 2, 2, 2, 3])
    np.testing.assert_allclose(
        read["weight_norm_square"][::3], (flat.astype(np.float64) ** 2).sum(1)[::3], rtol=1e-5
    )


def second_turn(values):
    changes = np.diff(values)
    turns = np.flatnonzero(changes[1:] * changes[:-1] < 0)
    return int(turns[1]) + 2 if len(turns) > 1 else None


def test_abel_waits_for_the_turn_after_the_bounce():
    time = np.arange(60.0)
    # Down, a minimum at 15, up to an equilibrium at 40 and a little down again.
    bounce = np.interp(time, [0, 15, 40, 60], [100.0, 60.0, 80.0, 79.0]) + 1e-3 * np.sin(time)
    trigger = rivals.bounced()
    assert fires(trigger, weight_norm_square=bounce) == second_turn(bounce) == 41
    for monotone in (np.log1p(time), -np.log1p(time)):
        assert fires(trigger, weight_norm_square=monotone) is None
    one_turn = np.abs(time - 20.5)
    assert fires(trigger, weight_norm_square=one_turn) is None


def first_inflection(values, smoothing, every):
    smooth, looks = values[0], []
    for index, value in enumerate(values):
        smooth += (1 - smoothing) * (value - smooth)
        if (index + 1) % every == 0:
            looks.append((index, smooth))
    second = np.diff([v for _, v in looks], 2)
    signs = np.flatnonzero((second[:-1] > 0) & (second[1:] < 0))
    return looks[int(signs[0]) + 3][0] if signs.size else None


def test_cpr_finds_where_growth_begins_to_slow():
    time = np.arange(1000.0)
    logistic = 100.0 + 50.0 / (1 + np.exp(-(time - 400) / 60))
    trigger = rivals.inflected(smoothing=0.9, every=20)
    fired = fires(trigger, weight_norm_square=logistic)
    assert fired == first_inflection(logistic, 0.9, 20)
    # The average lags by ten steps, and the second difference by a look.
    assert fired is not None
    assert 400 <= fired <= 450
    assert fires(trigger, weight_norm_square=100 + 1e-4 * time**2) is None


def test_norms_rest_at_an_equilibrium_and_not_while_steps_add_up():
    time = np.arange(1.0, 2001.0)
    # Steps of equal length across the weights: r' = a - b r, which settles at a / b if b > 0.
    settled = 200.0 * (1 - np.exp(-time / 200)) + 1.0
    fired = fires(rivals.norms_at_rest(), weight_norm_square=settled)
    assert fired is not None
    # Its slope over log t, s / (e^s - 1) with s = t / 200, is below a quarter from s = 2.3 on. The
    # regression looks back over a factor of about e in t.
    assert 460 <= fired <= 460 * np.e
    assert fires(rivals.norms_at_rest(), weight_norm_square=1.0 + time) is None


# --- angle ---


def test_the_angle_is_that_of_successive_displacements():
    flat, path = walk(25, seed=7)
    evaluations, read = readings(rivals.angular_velocity(every=4), path)
    points = flat.astype(np.float64)[::4]
    ways = np.diff(points, axis=0)
    unit = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    expected = np.degrees(np.arccos((unit[1:] * unit[:-1]).sum(1)))
    np.testing.assert_allclose(read["angular_velocity"][8::4], expected, rtol=1e-4)
    np.testing.assert_array_equal(evaluations[::4], [0, 0, 1, 2, 3, 4, 5])
    assert np.isnan(read["angular_velocity"][:8]).all()


def test_an_angle_without_a_displacement_is_unknown():
    _, read = readings(rivals.angular_velocity(every=1), {"x": jnp.ones((5, 3))})
    assert np.isnan(read["angular_velocity"]).all()


def test_autodrop_holds_where_the_angle_saturates():
    time = np.arange(60.0)
    saturating = 90.0 * (1 - np.exp(-time / 8))
    trigger = rivals.saturated(tolerance=0.5)
    expected = int(np.flatnonzero(np.abs(np.diff(saturating)) < 0.5)[0]) + 1
    assert fires(trigger, angular_velocity=saturating) == expected
    assert expected > 10
    assert fires(trigger, angular_velocity=2.0 * time) is None


# --- given times ---


def test_given_times_are_those_at_which_phases_begin():
    first, second = rivals.at_steps(5, 9)
    count = jnp.arange(12)

    def started(trigger):
        def step(state, number):
            verdict, state = trigger.update(Observation({}, number, number), state)
            return state, verdict

        return 1 + int(np.argmax(jax.lax.scan(step, trigger.init(), count)[1] == 1))

    assert (started(first), started(second)) == (5, 9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_neither_fires_nor_blocks(bad):
    rng = np.random.default_rng(8)
    series = {"norm_drift": 0.1 * rng.standard_normal(3000), "step_square": np.ones(3000)}
    series["norm_drift"][::3] = bad
    assert fires(rivals.stationary(), **series) is not None
    flat = np.ones(300)
    flat[::3] = bad
    assert fires(rivals.plateau_of_means(window=5, patience=3), loss=flat) is not None
    assert fires(rivals.saturated(), angular_velocity=flat) is not None
    for trigger in (rivals.bounced(), rivals.inflected()):
        assert fires(trigger, weight_norm_square=np.full(300, bad)) is None
