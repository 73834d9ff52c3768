"""The warp of MNIST digits against its definition, and the splits."""

import jax
import numpy as np
import pytest

from benchmarks.tasks import get_task
from benchmarks.tasks.mnist5k_vit import MAX_ANGLE, MAX_SHIFT, SIDE, SPLITS, reduced, warp

# A linear interpolation errs by at most an eighth of the second derivative, which is at most
# a quarter along rows of a spot of width 2, and 1 + tan^2 times that along the second pass.
_ERROR = (2 + np.tan(MAX_ANGLE) ** 2) / 32


def _blob(row, column, width=2.0):
    """A round spot; rows and columns are counted from the middle."""
    places = np.arange(SIDE) - (SIDE - 1) / 2
    squares = (places[:, None] - row) ** 2 + (places[None, :] - column) ** 2
    return np.exp(-squares / (2 * width**2)).astype(np.float32)


def _warp(image, angle=0.0, shift=(0.0, 0.0)):
    angles, shifts = np.asarray([angle], np.float32), np.asarray([shift], np.float32)
    return np.asarray(jax.jit(warp)(image[None], angles, shifts))[0]


def test_no_rotation_and_no_shift_is_the_image():
    image = np.random.default_rng(0).uniform(size=(SIDE, SIDE)).astype(np.float32)
    np.testing.assert_array_equal(_warp(image), image)


@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (-1, 2)])
def test_a_shift_by_whole_pixels_moves_them(shift):
    image = np.zeros((SIDE, SIDE), np.float32)
    image[4:12, 4:12] = np.random.default_rng(1).uniform(size=(8, 8))
    np.testing.assert_array_equal(_warp(image, shift=shift), np.roll(image, shift, (0, 1)))


@pytest.mark.parametrize("angle", [-MAX_ANGLE, -0.1, MAX_ANGLE])
def test_a_spot_turns_about_the_middle(angle):
    row, column = -2.0, 2.5
    sin, cos = np.sin(angle), np.cos(angle)
    # The warp reads the result's (v, u) at row v cos - u sin and column u cos + v sin.
    expected = _blob(row * cos + column * sin, column * cos - row * sin)
    np.testing.assert_allclose(_warp(_blob(row, column), angle), expected, atol=_ERROR)


def test_the_shift_comes_before_the_rotation():
    both = _warp(_blob(-2.0, 2.5), angle=0.2, shift=(1.5, -1.0))
    moved = _warp(_blob(-0.5, 1.5), angle=0.2)
    sin, cos = np.sin(0.2), np.cos(0.2)
    expected = _blob(-0.5 * cos + 1.5 * sin, 1.5 * cos + 0.5 * sin)
    np.testing.assert_allclose(moved, expected, atol=_ERROR)
    np.testing.assert_allclose(both, expected, atol=_ERROR)


def test_pixels_are_means_of_four():
    image = np.zeros((1, 28, 28))
    image[0, 10:12, 20:22] = [[255, 0], [0, 51]]
    small = reduced(image.reshape(1, -1))
    expected = np.zeros((1, SIDE, SIDE), np.float32)
    expected[0, 6, 11] = 0.3
    np.testing.assert_allclose(small, expected, rtol=1e-6)


def test_the_splits_hold_every_digit_once():
    data = get_task("mnist5k_vit").data(0)
    assert {name: len(part["label"]) for name, part in data.items()} == SPLITS
    labels = np.concatenate([data[name]["label"] for name in SPLITS])
    np.testing.assert_array_equal(np.bincount(labels), 500)
    train = np.asarray(data["train"]["image"])
    assert len({image.tobytes() for image in train}) == len(train)
    for name in SPLITS:
        images = np.asarray(data[name]["image"])
        assert images.min() >= 0
        assert images.max() <= 1


def test_each_image_of_a_batch_is_turned_and_shifted_anew():
    task = get_task("mnist5k_vit")
    data = task.data(0)
    one, other = (jax.jit(task.batch)(data, jax.random.key(0), step) for step in (0, 1))
    assert one["image"].shape == (task.batch_size, SIDE, SIDE)
    assert not np.array_equal(one["image"], other["image"])
    train = {image.tobytes() for image in np.asarray(data["train"]["image"])}
    assert not train & {image.tobytes() for image in np.asarray(one["image"])}
    # A digit keeps three pixels of margin, and a turn moves a corner of it by little more than
    # the sine times half its side: next to nothing leaves the image.
    assert MAX_SHIFT + 5 * np.sin(MAX_ANGLE) < 3
