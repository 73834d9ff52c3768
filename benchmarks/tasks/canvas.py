"""scikit-learn's 8 x 8 digits, each placed at random on an empty 12 x 12 canvas.

Their 25 places keep 1,197 training images from being memorised; others have a place drawn once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.supervised import drawn, parted

SPLITS, CANVAS = {"train": 1197, "validation": 300, "test": 300}, 12
MAX_SHIFT = 2  # from the middle: every place of the 8 x 8 image on the canvas, none cut off


@functools.cache
def splits() -> dict[str, dict[str, jax.Array]]:
    """Images and labels; those for training are not yet placed."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    rng, data = np.random.default_rng(1797), {}
    for name, rows in parted(rng.permutation(len(digits.target)), SPLITS).items():
        images = jnp.asarray(digits.images[rows] / 16, jnp.float32)
        labels = jnp.asarray(digits.target[rows], jnp.int32)
        if name != "train":
            places = rng.integers(0, 2 * MAX_SHIFT + 1, (len(labels), 2))
            images = place(images, jnp.asarray(places))
        data[name] = {"image": images, "label": labels}
    return data


def place(images, places):
    """Puts each 8 x 8 image on an empty canvas, its corner at its own (row, column)."""
    # Products with shifted identities: per-example slices are slow gathers on a CPU.
    size = images.shape[-1]
    moves = jnp.stack([jnp.eye(CANVAS, size, k=-k) for k in range(2 * MAX_SHIFT + 1)])
    rows, columns = moves[places[:, 0]], moves[places[:, 1]]
    return jnp.einsum("bij,bjk,blk->bil", rows, images, columns)


def batch(data, key, step, batch_size: int):
    """Training images and their labels, at places drawn anew."""
    row_key, place_key = jax.random.split(jax.random.fold_in(key, step))
    rows = drawn(data["train"], row_key, batch_size)
    places = jax.random.randint(place_key, (batch_size, 2), 0, 2 * MAX_SHIFT + 1)
    return {"image": place(rows["image"], places), "label": rows["label"]}
