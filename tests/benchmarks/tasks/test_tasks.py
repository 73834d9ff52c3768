"""The tasks are what they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.tasks import TASKS, get_task
from benchmarks.tasks.canvas import CANVAS, SPLITS, place
from benchmarks.tasks.char_gpt import VALIDATION_WINDOWS, VOCABULARY, WINDOW, data_digest, text
from fgo_jax.curvature import example_losses

NETWORKS = ["digits_vit", "mnist5k_vit", "char_gpt", "digits_autoencoder", "modular_addition"]


@pytest.mark.parametrize("name", TASKS)
def test_evaluations_are_fine_enough_for_a_race(name):
    task = get_task(name)
    assert task.eval_every <= task.num_steps / 200
    assert task.num_steps % task.eval_every == 0


@pytest.mark.parametrize("name", ["quadratic_bowl", *NETWORKS])
def test_a_batch_is_a_function_of_key_and_step(name):
    task = get_task(name)
    data, key = task.data(0), jax.random.key(0)
    batch = jax.jit(task.batch)
    first, again, other = (batch(data, key, step) for step in (3, 3, 4))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert not jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, other))


def _any_params(task):
    """Not the initial ones, whose program would be most of a test's."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(task.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0.0, 0.1, leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_loss_is_the_named_loss_of_the_predictions(name):
    task = get_task(name)
    params = _any_params(task)
    batch = jax.jit(task.batch)(task.data(0), jax.random.key(1), 0)
    losses = example_losses(task.predict, task.loss_name)
    loss, named = jax.jit(lambda p: (task.loss(p, batch), losses(p, batch)))(params)
    np.testing.assert_allclose(loss, named.mean(), rtol=1e-5)


def test_a_loss_of_logits_is_its_definition():
    task = get_task("digits_vit")
    params = _any_params(task)
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
            placed = np.asarray(place(image, np.asarray([[row, column]])))[0]
            expected = np.zeros((CANVAS, CANVAS), np.float32)
            expected[row : row + 8, column : column + 8] = image[0]
            np.testing.assert_array_equal(placed, expected)


def test_a_gpt_begins_with_all_characters_alike():
    task = get_task("char_gpt")
    params = jax.jit(task.init)(jax.random.key(0))
    # Small output weights: each logit has a variance of 64 * .02^2 = .026, half of which
    # is what the loss has above the logarithm of the vocabulary's size.
    loss = jax.jit(task.evaluate)(task.data(0), params)
    assert abs(loss - np.log(VOCABULARY)) < 0.05
    assert 110_000 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 125_000


def test_a_gpt_sees_no_later_character():
    task = get_task("char_gpt")
    params = jax.jit(task.init)(jax.random.key(0))
    batch = task.batch(task.data(0), jax.random.key(1), 0)
    predict = jax.jit(task.predict)
    changed = {**batch, "text": batch["text"].at[:, 40:].add(1) % VOCABULARY}
    before, after = predict(params, batch), predict(params, changed)
    np.testing.assert_array_equal(before[:, :40], after[:, :40])
    assert not np.allclose(before[:, 40:], after[:, 40:])


def test_labels_of_a_text_are_its_next_characters():
    data = get_task("char_gpt").data(0)
    batch = get_task("char_gpt").batch(data, jax.random.key(0), 0)
    for part in (batch, data["validation"], data["test"]):
        np.testing.assert_array_equal(part["text"][:, 1:], part["label"][:, :-1])


def test_what_a_gpt_is_tested_on_is_not_in_its_training_text():
    data = get_task("char_gpt").data(0)

    def pieces(tokens):
        rows = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens, np.uint8), WINDOW)
        return {row.tobytes() for row in rows}

    train = pieces(data["train"])
    names = ("validation", "test")
    rows = {n: [row.tobytes() for row in np.asarray(data[n]["text"], np.uint8)] for n in names}
    assert len(rows["validation"]) == VALIDATION_WINDOWS
    assert not set(rows["validation"]) & set(rows["test"])
    for name, chosen in rows.items():
        # Sixty-four characters may be told in the same words twice; a leak would be far more.
        assert np.mean([row in train for row in chosen]) < 0.01, name


def test_the_text_repeats_no_line_of_another_paragraph():
    paragraphs = [
        {" ".join(line.split()) for line in paragraph.splitlines()} - {""}
        for paragraph in text().split("\n\n")
    ]
    assert sum(map(len, paragraphs)) == len(set().union(*paragraphs))
    assert data_digest().startswith(f"{len(text())} characters, sha256 ")


def test_an_autoencoder_gives_back_what_it_is_given():
    task = get_task("digits_autoencoder")
    data = task.data(0)
    batch = jax.jit(task.batch)(data, jax.random.key(0), 0)
    np.testing.assert_array_equal(batch["pixels"], batch["label"])
    params = jax.jit(task.init)(jax.random.key(0))
    assert jax.eval_shape(task.predict, params, batch).shape == batch["label"].shape
    # Grey pixels cannot be told for certain: their entropy is a floor of the loss.
    pixels = np.asarray(data["validation"]["label"], np.float64)
    p = pixels[(pixels > 0) & (pixels < 1)]
    floor = -np.sum(p * np.log(p) + (1 - p) * np.log1p(-p)) / len(pixels)
    assert floor < jax.jit(task.evaluate)(data, params)


def test_the_autoencoders_splits_share_no_image():
    data = get_task("digits_autoencoder").data(0)
    digits = {"train": _digits(data["train"]["image"])}
    for name in ("validation", "test"):
        side = int(np.sqrt(data[name]["pixels"].shape[-1]))
        digits[name] = _digits(data[name]["pixels"].reshape(-1, side, side))
    # Two digits may be drawn alike by chance; a leak would be far more.
    assert len(digits["train"] & digits["test"]) <= 1
    assert len(digits["train"] & digits["validation"]) <= 1
