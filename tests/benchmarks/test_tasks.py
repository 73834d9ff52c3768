"""The tasks are what they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.tasks import TASKS, get_task
from benchmarks.tasks.digits_vit import CANVAS, SPLITS, _place


@pytest.mark.parametrize("name", TASKS)
def test_evaluations_are_fine_enough_for_a_race(name):
    task = get_task(name)
    assert task.eval_every <= task.num_steps / 200
    assert task.num_steps % task.eval_every == 0


@pytest.mark.parametrize("name", ["quadratic_bowl", "digits_vit"])
def test_a_batch_is_a_function_of_key_and_step(name):
    task = get_task(name)
    data, key = task.data(0), jax.random.key(0)
    batch = jax.jit(task.batch)
    first, again, other = (batch(data, key, step) for step in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, other))


def test_the_loss_is_the_named_loss_of_the_predictions():
    task = get_task("digits_vit")
    params = jax.jit(task.init)(jax.random.key(0))
    batch = jax.jit(task.batch)(task.data(0), jax.random.key(1), 0)
    loss, logits = jax.jit(lambda p: (task.loss(p, batch), task.predict(p, batch)))(params)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)
    np.testing.assert_allclose(loss, -chosen.mean(), rtol=1e-5)


def test_the_bowls_metric_is_its_population_loss_above_the_noise():
    task = get_task("quadratic_bowl")
    data = task.data(7)
    params = {"theta": 0.5 * data["optimum"]}
    losses = jax.jit(
        jax.vmap(lambda step: task.loss(params, task.batch(data, jax.random.key(1), step)))
    )(jnp.arange(4000))
    excess = np.asarray(losses) - 0.5 * float(data["sigma"]) ** 2
    # Budget: 4,000 batches of 32; five of the mean's own standard errors.
    error = excess.std() / np.sqrt(len(excess))
    assert abs(excess.mean() - float(task.evaluate(data, params))) < 5 * error
    assert task.evaluate(data, {"theta": data["optimum"]}) == 0


def test_the_bowls_spectrum():
    root = np.asarray(get_task("quadratic_bowl").data(3)["root"])
    spectrum = np.sort(np.linalg.svd(root, compute_uv=False) ** 2)[::-1]
    # f32 singular values, squared: a few units in the last place of the largest.
    np.testing.assert_allclose(spectrum, np.logspace(0, -3, 20), atol=1e-6)


def test_bowls_of_different_seeds_differ():
    task = get_task("quadratic_bowl")
    one, two = task.data(0), task.data(1)
    assert not np.allclose(one["root"], two["root"])
    assert not np.allclose(one["optimum"], two["optimum"])


def _digits(images):
    """Each image without its empty margin, which says nothing of the digit."""
    found = set()
    for image in np.asarray(images):
        rows, columns = np.nonzero(image)
        found.add(image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].tobytes())
    return found


def test_the_digits_splits_share_no_image():
    data = get_task("digits_vit").data(0)
    assert {name: len(data[name]["label"]) for name in SPLITS} == SPLITS
    digits = {name: _digits(data[name]["image"]) for name in SPLITS}
    # Two digits may be drawn alike by chance; a leak would be far more.
    assert len(digits["train"] & digits["test"]) <= 1
    assert len(digits["train"] & digits["validation"]) <= 1


def test_an_image_is_placed_whole_on_an_empty_canvas():
    image = np.arange(1.0, 65.0, dtype=np.float32).reshape(1, 8, 8)
    for row in range(5):
        for column in range(5):
            placed = np.asarray(_place(image, np.asarray([[row, column]])))[0]
            expected = np.zeros((CANVAS, CANVAS), np.float32)
            expected[row : row + 8, column : column + 8] = image[0]
            np.testing.assert_array_equal(placed, expected)
