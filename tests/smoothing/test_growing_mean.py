"""The running mean, and what is made of it, step by step."""

import jax
import jax.numpy as jnp
import numpy as np

import fgo_jax as fgo
from fgo_jax.smoothing import average_weights, energy_exponent, growing_mean, slow_momentum

moved = jax.jit(growing_mean.moved)
averaged = jax.jit(average_weights.average_update)
momentum = jax.jit(slow_momentum.momentum_update)
TREES = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def test_the_first_tree_is_the_mean_and_nothing_of_the_zeros_stays():
    first = moved(jnp.zeros(3), TREES[0], jnp.float32(0.25), jnp.int32(0))
    np.testing.assert_array_equal(first, TREES[0])


def test_with_a_window_of_zero_it_is_the_last_tree():
    mean = moved(jnp.full(3, 1e8), TREES[0], jnp.float32(0.0), jnp.int32(7))
    np.testing.assert_array_equal(mean, TREES[0])


def test_with_a_window_of_one_it_is_the_plain_mean():
    mean = jnp.zeros(3)
    for seen, tree in enumerate(TREES):
        mean = moved(mean, tree, jnp.float32(1.0), jnp.int32(seen))
    np.testing.assert_allclose(mean, TREES.mean(0), rtol=1e-5, atol=1e-6)


def test_in_bfloat16_it_still_moves_by_less_than_its_last_bit():
    """From 1 towards 1.5 by a thousandth of the distance; the last bit is 2^-7."""
    mean, exact = jnp.ones(4096, jnp.bfloat16), 1.0
    for seen in range(4000, 4010):
        mean = moved(mean, jnp.full(4096, 1.5), jnp.float32(0.25), jnp.int32(seen))
        exact += (1.5 - exact) / (0.25 * seen + 1.0)
    assert mean.dtype == jnp.bfloat16
    # Of 4,096 entries, each at most half a bit off in the root mean square; four standard errors.
    assert abs(np.asarray(mean, np.float64).mean() - exact) < 4 * 2.0**-8 / 4096**0.5


def test_in_float32_it_still_moves_after_millions_of_steps():
    """From averages around 1 towards 0.5 % more, by less than half of the last bit each time."""
    start = np.linspace(0.6, 2.6, 64, dtype=np.float32)

    @jax.jit
    def run(mean, tree, window, first):
        def step(mean, seen):
            return growing_mean.moved(mean, tree, window, first + seen), None

        return jax.lax.scan(step, mean, jnp.arange(100_000))[0]

    for sign in (1, -1):
        mean = run(sign * start, 1.005 * sign * start, jnp.float32(0.1), jnp.int32(2_000_000))
        # The distance shrinks as the memory to the power of -1/c.
        exact = sign * start * (1.005 - 0.005 * (2.0 / 2.1) ** 10)
        np.testing.assert_allclose(mean, exact, rtol=2e-6)
        same = run(sign * start, sign * start, jnp.float32(0.1), jnp.int32(2_000_000))
        np.testing.assert_array_equal(same, sign * start)


def test_in_float32_early_steps_are_rounded_to_the_nearest():
    mean, tree = np.float32([1.0, -3.0, 0.7]), np.float32([1.1, 2.0, 0.7])
    found = moved(mean, tree, jnp.float32(0.1), jnp.int32(99_000))
    exact = mean + (tree.astype("f8") - mean) / (0.1 * 99_000 + 1)
    np.testing.assert_array_equal(found, exact.astype("f4"))


def test_a_late_slow_momentum_takes_every_direction():
    """Its squared length, from which the exponent of the decay follows, falls as 1/t for ever."""
    window, seen = jnp.float32(0.25), jnp.int32(1_000_000)
    mean = np.float32([1e-3, -2e-3, 5e-4])
    for step in range(20):
        state = slow_momentum.SlowMomentumState(seen + step, jnp.float32(0.5), jnp.asarray(mean))
        _, state = momentum(state, TREES[step % 6], jnp.float32(0.5), window=window)
        exact = mean + (TREES[step % 6].astype("f8") - mean) / (0.25 * (1_000_000 + step) + 1)
        np.testing.assert_allclose(state.mean, exact, rtol=2e-7)
        mean = np.asarray(state.mean)


def test_an_infinite_tree_that_is_not_taken_leaves_it_as_it_was():
    bad = jnp.full(3, jnp.inf)
    kept = moved(TREES[0], bad, jnp.float32(0.25), jnp.int32(3), jnp.asarray(False))
    np.testing.assert_array_equal(kept, TREES[0])


def test_a_step_that_is_not_taken_is_neither_averaged_nor_counted():
    window = jnp.float32(1.0)
    state = average_weights.average_init(jnp.zeros(3), window)
    for number, tree in enumerate(TREES):
        state = averaged(state, tree, window, jnp.asarray(number % 2 == 0))
    assert int(state.averaged_steps) == 3
    np.testing.assert_allclose(state.average, TREES[::2].mean(0), rtol=1e-5, atol=1e-6)


def test_an_evaluation_takes_the_present_weights_into_the_average():
    window = jnp.float32(1.0)
    state = average_weights.average_init(jnp.zeros(3), window)
    for tree in TREES[:-1]:
        state = averaged(state, tree, window)
    found = fgo.eval_params(state, jnp.asarray(TREES[-1]))
    np.testing.assert_allclose(found, TREES.mean(0), rtol=1e-5, atol=1e-6)


def test_slow_momentum_begins_with_the_first_direction_of_its_use():
    state = slow_momentum.momentum_init(jnp.zeros(3))
    share, none = jnp.float32(0.5), jnp.float32(0.0)
    for use in (none, share, share, none):
        _, state = momentum(state, 100 * TREES[0], use)
    assert int(state.averaged_steps) == 0
    direction, state = momentum(state, TREES[1], share)
    np.testing.assert_allclose(state.mean, TREES[1], rtol=1e-5)
    np.testing.assert_allclose(direction, TREES[1], rtol=1e-5)
    assert int(state.averaged_steps) == 1


def test_the_share_grows_with_the_directions_in_the_mean():
    state = slow_momentum.momentum_init(jnp.zeros(3))
    shares = []
    for tree in TREES:
        _, state = momentum(state, tree, jnp.float32(0.5), ramp_steps=jnp.float32(3.0))
        shares.append(float(state.share))
    count = np.arange(len(TREES))
    np.testing.assert_allclose(shares, 0.5 * count / (count + 3), rtol=1e-6)


def test_a_step_that_is_not_taken_leaves_share_count_and_mean():
    state = slow_momentum.momentum_init(jnp.zeros(3))
    for tree in TREES[:3]:
        _, state = momentum(state, tree, jnp.float32(0.5))
    _, after = momentum(state, TREES[3], jnp.float32(0.5), taken=jnp.asarray(False))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_a_mean_whose_energy_overflows_leaves_the_exponent_as_it_was():
    look = jax.jit(energy_exponent.energy_fall_update)
    fall = energy_exponent.energy_fall_init()
    slow = slow_momentum.momentum_init(jnp.zeros(3))
    for steps, length in ((10, 2.0), (20, 1.5), (30, 1.0)):
        slow = slow._replace(averaged_steps=jnp.int32(steps), mean=jnp.full(3, length))
        fall = look(fall, slow)
    assert float(energy_exponent.energy_exponent(fall)) > 0
    # Each entry is a float32, the sum of their squares is not.
    huge = slow._replace(averaged_steps=jnp.int32(40), mean=jnp.full(3, 1e20))
    jax.tree.map(np.testing.assert_array_equal, look(fall, huge), fall)
