"""ViT-small on CIFAR-10, cropped and mirrored at random on the device."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks import cifar10
from benchmarks.tasks.cifar10 import CHANNELS, SIDE
from benchmarks.tasks.supervised import drawn, fixed, supervised
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import VisionTransformer

BATCH_SIZE = 128
PADDING = 4
VALIDATION = 20  # one in so many images for training is for validation
MODEL = VisionTransformer()


@functools.cache
def _splits(folder: Path | None):
    read = cifar10.read_folder(folder)
    images, labels = read["train"]
    order = np.random.default_rng(10).permutation(len(labels))
    end = max(len(order) // VALIDATION, 1)
    validation, train = np.sort(order[:end]), np.sort(order[end:])
    return {
        # A byte each: four times as many examples fit on a device.
        "train": {"image": jnp.asarray(images[train]), "label": jnp.asarray(labels[train])},
        "validation": _example(images[validation], labels[validation]),
        "test": _example(*read["test"]),
    }


def _example(images, labels):
    return {"image": _scaled(jnp.asarray(images)), "label": jnp.asarray(labels)}


def _scaled(images):
    """Pixels from 0..255 to about zero mean and unit variance."""
    return images.astype(jnp.float32) / 64 - 2


def cropped(images, corners, mirrored):
    """Crops of the padded images at their own corners, some of them mirrored.

    Args:
      images: f32 [batch, side, side, channels].
      corners: int32 [batch, 2], row and column of the crop in the padded image; `PADDING`
        twice is the whole image.
      mirrored: bool [batch].
    """
    margin = (PADDING, PADDING)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    crops = jax.vmap(crop)(padded, corners)
    return jnp.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)


def _batch(data, key, step):
    keys = jax.random.split(jax.random.fold_in(key, step), 3)
    rows = drawn(data["train"], keys[0], BATCH_SIZE)
    corners = jax.random.randint(keys[1], (BATCH_SIZE, 2), 0, 2 * PADDING + 1)
    mirrored = jax.random.bernoulli(keys[2], shape=(BATCH_SIZE,))
    return {**rows, "image": cropped(_scaled(rows["image"]), corners, mirrored)}


def cifar10_vit(folder: Path | None = None) -> Task:
    """The task on the data in a folder; without one it can be listed but not run."""
    return Task(
        name="cifar10_vit",
        num_steps=20_000,
        eval_every=100,
        warmup_steps=500,
        batch_size=BATCH_SIZE,
        data=fixed(functools.partial(_splits, folder)),
        batch=_batch,
        timed_steps=40,
        data_digest=functools.partial(cifar10.digest, folder),
        uses=("cifar10.py", "supervised.py", "transformers.py"),
        **supervised(MODEL, "image", (1, SIDE, SIDE, CHANNELS), at_once=500),
    )
