"""ViT-small on CIFAR-10, cropped and mirrored at random on the device.

The data are a folder of the user's that holds the binary version of CIFAR-10.
"""

import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.supervised import drawn, supervised
from benchmarks.tasks.task import DataError, Task
from benchmarks.tasks.transformers import VisionTransformer

BATCH_SIZE, PADDING = 128, 4
VALIDATION = 20  # one in so many images for training is for validation
MODEL = VisionTransformer()
SIDE, CHANNELS, CLASSES = 32, 3, 10
RECORD = 1 + CHANNELS * SIDE**2  # bytes: a label, then red, green and blue, row by row
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
HELP = (
    "Get the binary version of CIFAR-10 from https://www.cs.toronto.edu/~kriz/cifar.html, unpack "
    "it and give the folder that holds data_batch_1.bin to data_batch_5.bin and test_batch.bin "
    "as --data-dir."
)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [records, 32, 32, 3] images and int32 [records] labels of a file, however long.

    Raises:
      DataError: the file is not there, ends within a record, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"There is no {path}. {HELP}")
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % RECORD:
        raise DataError(
            f"{path} has {content.size} bytes, which is no whole number of records of {RECORD}: "
            f"it is truncated or another format. {HELP}"
        )
    records = content.reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() >= CLASSES:
        raise DataError(f"{path} has a label {labels.max()}, but CIFAR-10 ends at 9. {HELP}")
    images = records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return images, labels


@functools.cache
def read_folder(folder: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The records for training, in the order of their files, and those for testing.

    Raises:
      DataError: there is no folder, or one of its files cannot be read.
    """
    if folder is None:
        raise DataError(f"This task has no data of its own. {HELP}")
    parts = [read(folder / name) for name in TRAIN_FILES]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {"train": (images, labels), "test": read(folder / TEST_FILE)}


@functools.cache
def digest(folder: Path | None) -> str:
    """Number of records and hash of all of them."""
    data, found = read_folder(folder), hashlib.sha256()
    for images, labels in data.values():
        found.update(images.tobytes())
        found.update(labels.tobytes())
    counts = " and ".join(f"{len(labels)} {name}" for name, (_, labels) in data.items())
    return f"{counts} records, sha256 {found.hexdigest()[:16]}"


@functools.cache
def _splits(folder: Path | None):
    read = read_folder(folder)
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
    """Crops of the padded images [batch, side, side, channels], some of them mirrored.

    Corners are int32 [batch, 2], row and column in the padded image; `PADDING` twice is the whole.
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
        name="cifar10_vit", num_steps=20_000, eval_every=100, warmup_steps=500,
        batch_size=BATCH_SIZE, batch=_batch, timed_steps=40,
        data_digest=functools.partial(digest, folder),
        **supervised(
            functools.partial(_splits, folder), MODEL, "image", (1, SIDE, SIDE, CHANNELS),
            at_once=500,
        ),
    )  # fmt: skip
