"""CIFAR-10 is read as its binary version is written, on files of a few records."""

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from click.testing import CliRunner
from scipy import special

from benchmarks.__main__ import main
from benchmarks.tasks import DataError, get_task

# The package's own name of the module is the task.
cifar10 = importlib.import_module("benchmarks.tasks.cifar10_vit")
RECORDS = {**dict.fromkeys(cifar10.TRAIN_FILES, 8), cifar10.TEST_FILE: 5}
ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"


def _write(folder):
    """A folder in the format of the original, and what is in it."""
    rng, written = np.random.default_rng(0), {}
    for name, count in RECORDS.items():
        labels = rng.integers(0, 10, count, np.uint8)
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        with open(folder / name, "wb") as file:
            for label, image in zip(labels, images, strict=True):
                file.write(bytes([label]))
                for channel in range(3):
                    file.write(image[:, :, channel].tobytes())
        written[name] = (images, labels)
    return written


@pytest.fixture
def folder(tmp_path):
    _write(tmp_path)
    return tmp_path


def test_records_come_back_as_they_were_written(tmp_path):
    written = _write(tmp_path)
    read = cifar10.read_folder(tmp_path)
    train = [written[name] for name in cifar10.TRAIN_FILES]
    for number in (0, 1):  # images, labels
        expected = np.concatenate([part[number] for part in train])
        np.testing.assert_array_equal(read["train"][number], expected)
        np.testing.assert_array_equal(read["test"][number], written[cifar10.TEST_FILE][number])
    assert cifar10.digest(tmp_path).startswith("40 train and 5 test records, sha256 ")


@pytest.mark.parametrize("name", [cifar10.TRAIN_FILES[2], cifar10.TEST_FILE])
def test_a_missing_file_is_named_with_where_to_get_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"no .*{name}.*binary version.*{ADDRESS}.*--data-dir"):
        cifar10.read_folder(folder)


def test_without_a_folder_the_error_says_where_to_get_one():
    with pytest.raises(DataError, match=ADDRESS):
        get_task("cifar10_vit").data(0)


@pytest.mark.parametrize("size", [0, 3 * cifar10.RECORD - 1])
def test_a_truncated_file_is_an_error(folder, size):
    path = folder / cifar10.TRAIN_FILES[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=f"has {size} bytes.*truncated.*{ADDRESS}"):
        cifar10.read_folder(folder)


def test_a_label_beyond_the_classes_is_an_error(folder):
    path = folder / cifar10.TEST_FILE
    path.write_bytes(bytes([10]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match="label 10"):
        cifar10.read_folder(folder)


def test_every_image_is_in_one_split(folder):
    data = cifar10.cifar10_vit(folder).data(0)
    assert {name: len(part["label"]) for name, part in data.items()} == {
        "train": 38, "validation": 2, "test": 5,
    }  # fmt: skip
    original = cifar10.read_folder(folder)["train"][0]
    rows = np.concatenate([data["train"]["image"], 64 * (data["validation"]["image"] + 2)])
    found = {image.astype(np.uint8).tobytes() for image in rows}
    assert found == {image.tobytes() for image in original}


def test_a_crop_is_a_window_of_the_padded_image():
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    corners = np.asarray([[0, 0], [cifar10.PADDING, cifar10.PADDING], [8, 3], [5, 8]], np.int32)
    mirrored = np.asarray([False, False, True, False])
    crops = jax.jit(cifar10.cropped)(images, corners, mirrored)
    for image, (row, column), mirror, crop in zip(images, corners, mirrored, crops, strict=True):
        padded = np.zeros((40, 40, 3), np.float32)
        padded[4:36, 4:36] = image
        window = padded[row : row + 32, column : column + 32]
        np.testing.assert_array_equal(crop, window[:, ::-1] if mirror else window)
    np.testing.assert_array_equal(crops[1], images[1])


def test_a_batch_is_cropped_and_mirrored_at_random(folder):
    task = cifar10.cifar10_vit(folder)
    data, key = task.data(0), jax.random.key(0)
    batch = jax.jit(task.batch)
    one, again, other = (batch(data, key, step) for step in (3, 3, 4))
    assert one["image"].shape == (cifar10.BATCH_SIZE, 32, 32, 3)
    np.testing.assert_array_equal(one["image"], again["image"])
    assert not np.array_equal(one["image"], other["image"])
    # 128 draws of 38 images in 162 ways each: hardly two alike, and more than there are images.
    assert len({image.tobytes() for image in np.asarray(one["image"])}) > 100


class Small(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(10)(images[:, ::4, ::4].reshape(len(images), -1))


def test_a_small_model_learns_from_the_folder(folder, monkeypatch):
    monkeypatch.setattr(cifar10, "MODEL", Small())
    task = cifar10.cifar10_vit(folder)
    data = task.data(0)
    params = jax.jit(task.init)(jax.random.key(0))
    tx = optax.adam(3e-3)

    @jax.jit
    def step(carry, number):
        params, state = carry
        batch = task.batch(data, jax.random.key(1), number)
        value, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(60)))
    (params, _), losses = scan((params, jax.jit(tx.init)(params)))
    assert losses[-10:].mean() < losses[:10].mean() - 0.1
    # In parts or at once, validation and test are means over all their examples.
    result = jax.jit(functools.partial(task.test, data))(params)
    logits, labels = jax.jit(task.predict)(params, data["test"]), data["test"]["label"]
    losses = -np.take_along_axis(special.log_softmax(logits, 1), np.asarray(labels)[:, None], 1)
    np.testing.assert_allclose(result["cross_entropy"], losses.mean(), rtol=1e-5)
    right = np.mean(np.argmax(logits, -1) == labels)
    np.testing.assert_allclose(result["accuracy"], right, rtol=1e-6)


def test_the_model_is_vit_small():
    task = cifar10.cifar10_vit()
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert 21e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 22e6


@pytest.mark.parametrize("options", [[], ["--data-dir", "nowhere"]])
def test_the_command_says_where_the_data_are(options):
    result = CliRunner().invoke(main, ["race", "cifar10_vit", *options])
    assert result.exit_code == 1
    assert ADDRESS in result.output
    assert "--data-dir" in result.output


def test_the_command_refuses_a_folder_that_nobody_reads(tmp_path):
    result = CliRunner().invoke(main, ["race", "digits_vit", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "digits_vit brings its own data" in result.output


def test_the_command_reads_the_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.race.tuning.RESULTS", tmp_path)
    result = CliRunner().invoke(main, ["race", "cifar10_vit", "--data-dir", str(folder)])
    # The data are there; what is missing comes next.
    assert result.exit_code == 1
    assert "no committed settings" in result.output
