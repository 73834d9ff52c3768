"""The sampled Fisher's draws: unbiased for the GGN, and a function of the key alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax import curvature
from fgo_jax.curvature import losses
from fgo_jax.curvature.chunks import Part

RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(4)}
BATCH = {
    "x": jnp.asarray(RNG.normal(size=(6, 2, 3)), jnp.float32),
    "kept": jnp.asarray(RNG.uniform(size=(6, 2)), jnp.float32),
}
DIRECTIONS = {
    "w": jnp.asarray(RNG.normal(size=(5, 3, 4)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32),
}


def predict(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) * params["b"]


@pytest.mark.parametrize(
    "loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "squared_error"]
)
def test_is_unbiased_for_the_ggn(loss):
    draws = 2000
    operator = curvature.sampled_fisher(predict, loss, weights="kept")

    @jax.jit
    def frictions(keys):
        def draw(key):
            matvec = operator(PARAMS, BATCH, key=key)
            return curvature.friction(matvec, DIRECTIONS, stacked=True)

        return jax.vmap(draw)(keys)

    drawn = np.asarray(frictions(jax.random.split(jax.random.key(1), draws)))
    fisher = curvature.ggn(predict, loss, weights="kept")(PARAMS, BATCH)
    truth = curvature.friction(fisher, DIRECTIONS, stacked=True)
    errors = drawn.std(0, ddof=1) / draws**0.5
    assert np.all(np.abs(drawn.mean(0) - truth) < 3 * errors)
    # The test has teeth: 3 errors are less than 10 % of the mean.
    assert np.all(3 * errors < 0.1 * truth)


def test_noise_far_below_the_outputs_is_not_rounded_away():
    operator = curvature.sampled_fisher(lambda p, b: b * p, "squared_error")

    def product(output):
        return operator(jnp.array([output]), jnp.ones((64, 1)), key=jax.random.key(0))(jnp.ones(1))

    np.testing.assert_allclose(product(1e8), product(0.0), rtol=1e-6)


def test_labels_are_drawn_with_the_models_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.0, 0.3, 0.2]))
    rows = jnp.broadcast_to(logits, (4000, 4))
    labels = losses.draw_labels("softmax_cross_entropy", rows, jax.random.key(0), Part().rows)
    counts = np.bincount(labels, minlength=4)
    assert counts[1] == 0  # a class of no probability
    # Three standard deviations of a binomial count.
    p = np.array([0.5, 0.0, 0.3, 0.2])
    assert np.all(np.abs(counts - 4000 * p) <= 3 * np.sqrt(4000 * p * (1 - p)))


def test_a_small_class_of_a_large_vocabulary_keeps_its_share():
    """Half of the mass lies on 20,000 classes beyond the first."""
    logits = jnp.zeros(20_001).at[0].set(jnp.log(20_000.0))
    rows = jnp.broadcast_to(logits, (400, 20_001))
    labels = losses.draw_labels("softmax_cross_entropy", rows, jax.random.key(0), Part().rows)
    assert abs(int(jnp.sum(labels == 0)) - 200) <= 30  # three standard deviations
    tail = labels[labels > 0]
    assert abs(float(tail.mean()) / 10_000 - 1.0) < 3 / (3 * tail.size) ** 0.5


def test_keys_decide_and_may_be_raw_or_bound():
    operator = curvature.sampled_fisher(predict)

    @jax.jit
    def product(key):
        return operator(PARAMS, BATCH, key=key)(PARAMS)["w"]

    key = jax.random.key(4)
    same, other = product(key), product(jax.random.key(5))
    np.testing.assert_array_equal(product(key), same)
    np.testing.assert_array_equal(product(jax.random.key_data(key)), same)
    assert not np.allclose(other, same)
    bound = functools.partial(operator, key=key)
    product = jax.jit(lambda: bound(PARAMS, BATCH)(PARAMS)["w"])()
    np.testing.assert_allclose(product, same, rtol=1e-4, atol=1e-7)


def test_rows_are_numbered_in_the_batch_and_not_in_the_chunk():
    whole = np.arange(12 * 5).reshape(12, 5)
    for of in (2, 3, 4):
        parts = [Part(i, of, 12 // of).rows(12 // of * 5) for i in range(of)]
        expected = [whole[i::of].reshape(-1) for i in range(of)]
        np.testing.assert_array_equal(parts, expected)


def test_needs_a_key():
    with pytest.raises(TypeError, match="'key'"):
        curvature.sampled_fisher(predict)(PARAMS, BATCH)


def test_a_function_has_no_labels_to_draw():
    with pytest.raises(ValueError, match="use ggn, which needs no labels"):
        curvature.sampled_fisher(predict, lambda outputs, batch: outputs.sum())
