"""Learning rates against what they are by definition, and rivals that watch themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.methods import METHODS, schedules
from benchmarks.runs.training import train
from benchmarks.tasks import TASKS, get_task

BOWL = get_task("quadratic_bowl")
RATE, W, T = 0.3, 20, 200


def _rates(schedule, steps=T + 1):
    return np.asarray([schedule(jnp.int32(t)) for t in range(steps)])


@pytest.mark.parametrize("schedule_of", [schedules.wsd_linear, schedules.wsd_1_minus_sqrt])
def test_warm_up_stable_decay_is_a_ramp_a_plateau_and_a_fall_to_zero_at_the_horizon(schedule_of):
    def by_definition(t):
        if t < W:
            return RATE * (t + 1) / W
        if t < 160:
            return RATE
        gone = (t - 160) / 40
        return RATE * (1 - gone if schedule_of is schedules.wsd_linear else 1 - gone**0.5)

    # A fifth of T is not exact in float32, and the root is steep where it begins: an error
    # of 1e-7 there is one of 3e-4 of the rate.
    np.testing.assert_allclose(
        _rates(schedule_of(BOWL.shortened(T), {"learning_rate": RATE})),
        [by_definition(t) for t in range(T + 1)],
        atol=1e-3 * RATE,
    )


def test_one_over_sqrt_t_starts_at_the_end_of_the_warm_up():
    assert BOWL.warmup_steps == W
    rates = _rates(schedules.one_over_sqrt_t(BOWL, {"learning_rate": RATE}))
    # After the warm-up rate(t) * sqrt(t) stays what it was at its end.
    t = np.arange(W, T + 1)
    np.testing.assert_allclose(rates[W:] * np.sqrt(t), RATE * np.sqrt(W), rtol=1e-5)
    np.testing.assert_allclose(rates[:W], RATE * np.arange(1, W + 1) / W, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["cosine", "wsd_linear", "wsd_1_minus_sqrt", "two_step", "natural_gradient_cosine"]
)
def test_who_knows_the_horizon_says_so(name):
    assert METHODS[name].note == "knows T"


@pytest.mark.parametrize("name", list(TASKS))
def test_muon_enters_where_there_are_matrices(name):
    task = get_task(name)
    leaves = jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
    assert METHODS["muon"].enters(task) == any(leaf.ndim >= 2 for leaf in leaves)


def _plateau_rates(values):
    """The scale of the rate after each value of the training loss."""
    tx = METHODS["reduce_on_plateau"].build(BOWL, {"learning_rate": 1.0})
    params = jnp.zeros(3)
    update = jax.jit(tx.update)

    def step(state, value):
        _, state = update(jnp.ones(3), state, params, value=value)
        return state, optax.tree.get(state, "ReduceLROnPlateauState").scale

    return np.asarray(jax.lax.scan(step, tx.init(params), jnp.asarray(values, jnp.float32))[1])


def test_a_plateau_halves_the_rate_after_five_windows_of_four_evaluations():
    window = 4 * BOWL.eval_every
    scales = _plateau_rates(np.ones(13 * window))
    # The first window is the best so far; the fifth after it that is no better fires.
    np.testing.assert_array_equal(scales[: 6 * window - 1], 1.0)
    np.testing.assert_array_equal(scales[6 * window - 1 : 11 * window - 1], 0.5)
    assert scales[11 * window - 1] == 0.25


def test_a_falling_loss_keeps_its_rate():
    scales = _plateau_rates(np.exp(-0.01 * np.arange(200)))
    np.testing.assert_array_equal(scales, 1.0)


def test_the_plateau_refuses_a_loss_that_may_be_negative():
    task = dataclasses.replace(BOWL, loss_name="log_density")
    with pytest.raises(ValueError, match="never fires on a negative one"):
        METHODS["reduce_on_plateau"].build(task, {"learning_rate": 1.0})


def test_schedule_free_is_evaluated_at_its_own_average():
    task = BOWL.shortened(30)
    rate = 0.05
    curves = train(task, METHODS["schedule_free"], {"learning_rate": rate}, seed=0)

    # Defazio et al.: z steps from gradients at y between z and its average x, which is
    # weighted by squared rates; here Adam's second moment scales the steps.
    data = task.data(0)
    init_key, batch_key = jax.random.split(jax.random.key(0))
    x = z = task.init(init_key)["theta"]
    moment, weights = jnp.zeros_like(z), 0.0
    grad = jax.jit(jax.grad(task.loss))
    for t in range(task.num_steps):
        y = 0.1 * z + 0.9 * x
        g = grad({"theta": y}, task.batch(data, batch_key, jnp.int32(t)))["theta"]
        moment = 0.999 * moment + 0.001 * g**2
        step = rate * min((t + 1) / task.warmup_steps, 1)
        z = z - step * g / (jnp.sqrt(moment / (1 - 0.999 ** (t + 1))) + 1e-8)
        weight = (rate * min((t + 2) / task.warmup_steps, 1)) ** 2  # optax counts it from one
        weights += weight
        x = x + weight / weights * (z - x)
    # The same arithmetic in float32, but the average is recovered from y and z at each step,
    # which divides rounding errors by the first beta's 0.9.
    np.testing.assert_allclose(curves.raw[-1], task.evaluate(data, {"theta": x}), rtol=1e-3)
    test = task.test(data, {"theta": x})["excess_loss"]
    np.testing.assert_allclose(curves.test["raw"]["excess_loss"], test, rtol=1e-3)
