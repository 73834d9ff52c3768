"""Verdicts, combinators and the regression below them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fgo_jax as fgo
from fgo_jax.triggers import Observation, Signal, naming, regression

t = fgo.triggers
# Half of the default tolerance, over a shorter memory: the planted slopes of one stand clearly
# outside. The default's wider tolerance does fire at the turn from a collapse to a rebound.
STRICT = t.stall("x", tolerance=0.5, memory=0.5)


def verdicts(trigger, values, signal="x", steps=None, errors=None, fresh=None):
    """The trigger's verdict after each of a series of measurements."""
    values = jnp.asarray(values, jnp.float32)
    steps = jnp.arange(len(values)) if steps is None else jnp.asarray(steps)
    errors = jnp.full(len(values), jnp.nan) if errors is None else jnp.asarray(errors)
    fresh = jnp.ones(len(values), bool) if fresh is None else jnp.asarray(fresh)

    def look(state, item):
        value, error, new, step = item
        observation = Observation({signal: Signal(value, error, new)}, step, step)
        verdict, state = trigger.update(observation, state)
        return state, verdict

    _, out = jax.lax.scan(look, trigger.init(), (values, errors, fresh, steps))
    return np.asarray(out)


def constant(verdict):
    return {1: t.after(0), -1: t.after(10**6), 0: t.stall("x")}[verdict]


@pytest.mark.parametrize("left", [-1, 0, 1])
@pytest.mark.parametrize("right", [-1, 0, 1])
def test_combinators_are_three_valued_logic(left, right):
    a, b = constant(left), constant(right)
    signal = Signal(jnp.float32(1.0), jnp.float32(jnp.nan), jnp.asarray(True))
    observation = Observation({"x": signal}, jnp.int32(0), jnp.int32(0))

    @jax.jit
    def first():
        triggers = a & b, a | b, ~a, ~(a & b), ~a | ~b
        return [trigger.update(observation, trigger.init())[0] for trigger in triggers]

    both, either, opposite, *de_morgan = map(int, first())
    assert both == min(left, right)
    assert either == max(left, right)
    assert opposite == -left
    assert de_morgan[0] == de_morgan[1]


def test_a_streak_stops_at_the_largest_int32():
    trigger, last = t.after(10), jnp.int32(2**31 - 1)
    counts = jnp.stack([jnp.int32(1), last])
    state = {name: old._replace(counts=counts) for name, old in trigger.init().items()}
    verdict, state = trigger.update(Observation({}, last, last), state)
    assert int(verdict) == 1
    np.testing.assert_array_equal(state["after"].counts, counts)


def test_conditions_of_one_name_keep_their_own_state():
    both = t.above("x", 1.0, patience=1) & t.above("x", 3.0, patience=1)
    assert list(both.init()) == ["x_above", "x_above_2"]
    np.testing.assert_array_equal(verdicts(both, [0.0, 2.0, 4.0]), [-1, -1, 1])
    four = both & both
    assert len(four.init()) == 4
    np.testing.assert_array_equal(verdicts(four, [0.0, 2.0, 4.0]), [-1, -1, 1])


def test_a_negated_condition_has_a_name_and_a_verdict_of_its_own():
    quiet = ~t.above("x", 1.0, patience=1)
    for trigger, name in ((quiet, "not_x_above"), (~quiet, "x_above")):
        observation = Observation(
            {"x": Signal(jnp.float32(0.0), jnp.float32(jnp.nan), jnp.asarray(True))}, 0, 0
        )
        verdict, state = trigger.update(observation, trigger.init())
        assert list(state) == [name]
        assert int(state[name].verdict) == int(verdict) == (1 if name.startswith("not_") else -1)


def test_thresholds_test_the_confidence_bound_and_wait():
    trigger = t.below("x", 1.0, z=2.0, patience=2)
    values, errors = [0.5, 0.5, 0.5, 2.0], [0.5, 0.1, 0.1, 0.1]
    np.testing.assert_array_equal(verdicts(trigger, values, errors=errors), [0, 0, 1, -1])


def test_stale_signals_are_not_counted_twice():
    trigger = t.above("x", 0.0, patience=3)
    fresh = [True, False, False, True, True]
    np.testing.assert_array_equal(verdicts(trigger, [1.0] * 5, fresh=fresh), [0, 0, 0, 0, 1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
@pytest.mark.parametrize("make", [lambda: t.stall("x"), lambda: ~t.stall("x")])
def test_bad_values_neither_fire_nor_block_a_stall(make, bad):
    steps = np.unique(np.geomspace(100, 10_000, 100).astype(int))
    assert (verdicts(make(), np.full(len(steps), bad), steps=steps) == 0).all()
    dirty = np.full(len(steps), 7.0)
    dirty[1::2] = bad
    assert abs(verdicts(make(), dirty, steps=steps)[-1]) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_do_not_disturb_the_other_triggers(bad):
    for trigger in (t.above("x", 0.0), t.below("x", 0.0), t.decreasing("x"), t.increasing("x")):
        assert (verdicts(trigger, np.full(30, bad)) == 0).all()


def test_stall_is_two_sided():
    steps = np.unique(np.geomspace(50, 20_000, 60).astype(int))
    noise = np.exp(0.1 * np.random.default_rng(0).standard_normal(len(steps)))
    for exponent, expected in ((1.0, -1), (-1.0, -1), (0.0, 1)):
        series = 100.0 * (steps / 50.0) ** exponent * noise
        assert verdicts(STRICT, series, steps=steps)[-1] == expected


def test_stall_does_not_mistake_noise_for_rest():
    steps = np.unique(np.geomspace(50, 20_000, 60).astype(int))
    wild = np.exp(2.0 * np.random.default_rng(1).standard_normal(len(steps)))
    assert (verdicts(STRICT, wild, steps=steps) < 1).all()


def test_collapse_rebound_plateau_fires_on_the_plateau_only():
    # The shape that the dimension takes on a character model, looked at as often as
    # gradient_stream does.
    steps = np.unique(np.geomspace(40, 6_000, 32).astype(int))
    log_x = np.interp(
        np.log(steps), np.log([40, 110, 150, 500, 6_000]), np.log([110, 43, 38, 250, 270])
    )
    noise = 0.1 * np.random.default_rng(2).standard_normal(len(steps))
    out = verdicts(STRICT, np.exp(log_x + noise), steps=steps)
    fired = steps[out == 1]
    assert len(fired)
    assert fired.min() > 500


def test_trends_of_a_loss_that_may_be_negative():
    steps = np.arange(10, 400)
    noise = 0.1 * np.random.default_rng(3).standard_normal(len(steps))
    falling = -np.log(steps) + noise
    assert verdicts(t.decreasing("x"), falling, steps=steps)[-1] == 1
    assert verdicts(t.increasing("x"), falling, steps=steps)[-1] == -1
    assert verdicts(t.increasing("x"), -falling, steps=steps)[-1] == 1


def test_plateau_is_relative_and_works_below_zero():
    trigger = t.plateau("x", patience=3, rtol=0.01)
    falling = -1.0 - 0.1 * np.arange(10)
    assert (verdicts(trigger, falling) < 1).all()
    flat = np.concatenate([falling, np.full(5, falling[-1] * 1.001)])
    assert verdicts(trigger, flat)[12] == 1


def test_if_given_has_a_fixed_verdict_without_its_signal():
    trigger = t.if_given(t.above("loss", 0.0), "loss", otherwise=1)
    assert verdicts(trigger, [1.0], signal="other")[0] == 1
    assert (verdicts(trigger, [1.0, 1.0], signal="loss") == [0, 1]).all()
    assert "loss" in trigger.signals
    assert "loss" in trigger.optional
    assert "loss" not in (trigger & t.above("loss", 0.0)).optional


def test_regression_equals_weighted_least_squares():
    rng = np.random.default_rng(4)
    times = np.cumsum(rng.uniform(0.1, 1.0, 50)) + 20.0
    series = 3.0 - 0.4 * times + rng.standard_normal(50)
    state = regression.init()
    for time, value in zip(times, series, strict=True):
        state = regression.update(state, jnp.float32(time), jnp.float32(value), 5.0)
    slope = regression.slope(state)
    weights = np.exp(-(times[-1] - times) / 5.0)
    design = np.stack([np.ones(50), times], 1)
    expected = np.linalg.solve(design.T * weights @ design, design.T * weights @ series)[1]
    # f32 sums over 50 points against f64.
    np.testing.assert_allclose(slope.slope, expected, rtol=1e-3)
    np.testing.assert_allclose(slope.points, weights.sum() ** 2 / (weights**2).sum(), rtol=1e-4)


def share_covered(half_width, noise):
    """Of the rows of noise, added to a line, those whose interval holds the line's slope."""
    times = jnp.linspace(0.0, 1.0, noise.shape[1])

    def covered(noise):
        def add(state, point):
            return jnp.stack(regression.update(state, *point, 1e3)), None

        state, _ = jax.lax.scan(add, regression.init(), (times, 2.0 * times + noise))
        slope = regression.slope(regression.Regression(*state))
        return jnp.abs(slope.slope - 2.0) < half_width(slope)

    return float(jnp.mean(jax.vmap(covered)(jnp.asarray(noise, jnp.float32))))


def test_regression_error_covers_the_true_slope():
    noise = np.random.default_rng(5).standard_normal((2000, 30))
    share = share_covered(lambda slope: 2.048 * slope.error, noise)  # t quantile, 28 degrees
    # Binomial standard error of 2,000 repeats at 95 % is 0.5 %.
    assert 0.93 < share < 0.97


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t.stall("x", tolerance=0.0), "tolerance must be a finite number > 0"),
        (lambda: t.increasing("x", z=-1.0), "z must be"),
        (lambda: t.stall("x", patience=0), "patience must be an integer >= 1"),
        (lambda: t.after(-1), "steps must be an integer >= 0"),
        (lambda: t.after(10**10), "steps must be at most 2147483647"),
        (lambda: t.plateau("x", rtol=-1.0), "rtol must be a finite number >= 0"),
        (lambda: t.if_given(t.never(), "loss", otherwise=2), "otherwise is a verdict"),
        (lambda: t.if_given(t.never(), "losss", 1), "signal must be one of loss, validation, got"),
        (lambda: t.condition("x", tuple, None, signals="loss"), r"pass \('loss',\)"),
        (lambda: t.below("x", 1.0, z=-1.0), "z must be a finite number >= 0"),
        (lambda: t.above("x", float("nan")), "threshold must be a finite number, got nan"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_triggers_are_joined_by_operators_only():
    """Python's own words would keep one of two, and a negation would be False."""
    first, second = t.never(), t.after(3)
    for join in (lambda: first and second, lambda: first or second, lambda: not first):
        with pytest.raises(TypeError, match=r"join triggers with &, \| and ~"):
            join()


@pytest.mark.parametrize(("z", "excess"), [(1.282, 0.005), (1.645, 0.02), (2.326, 0.1)])
def test_margins_are_students_quantiles(z, excess):
    for freedom in (2.0, 3.0, 5.0, 10.0, 100.0):
        slope = regression.Slope(jnp.float32(0.3), jnp.float32(0.5), jnp.float32(freedom + 2.0))
        exact = 0.5 * stats.t(freedom).ppf(stats.norm.cdf(z))
        ratio = float(regression.margin(slope, z)) / exact
        # Of the inverted approximation: never too narrow by more than 1 %.
        assert -0.01 < ratio - 1.0 < excess


def test_margins_cover_the_true_slope_with_few_points():
    # Five points and hence three degrees of freedom: 1.645 normal errors would cover 80 %.
    noise = np.random.default_rng(6).standard_normal((4000, 5))
    share = share_covered(lambda slope: regression.margin(slope, 1.645), noise)
    # Three binomial standard errors of 4,000 repeats at 90 % are 1.4 %.
    assert 0.885 < share < 0.92


@pytest.mark.parametrize(
    ("name", "bound", "words"),
    [("loss_below", 10.0, "loss below 10"), ("x_above_2", 3.0, "x above 3 (2)"),
     ("not_loss_increasing", np.nan, "not loss increasing"), ("2", np.nan, "2")],
)  # fmt: skip
def test_a_condition_in_words(name, bound, words):
    assert naming.in_words(name, bound) == words
