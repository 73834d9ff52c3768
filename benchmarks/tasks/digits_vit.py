"""A small vision transformer on scikit-learn's 8 x 8 digits, placed at random on a 12 x 12 canvas.

Its 25 places keep 1,197 training images from being interpolated, so gradient noise and not
overfitting limits a constant rate: its validation loss still falls late in the run.
Validation and test images have one place each, drawn once.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from benchmarks.tasks import canvas
from benchmarks.tasks.canvas import CANVAS
from benchmarks.tasks.classification import classification
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import VisionTransformer

BATCH_SIZE = 32
MODEL = VisionTransformer(patch=3, dim=32, depth=2, heads=4, mlp=64)


def _data(seed: int):
    del seed  # the split is fixed: seeds differ in initial weights and batches
    return canvas.splits()


def _batch(data, key, step):
    rows, images = canvas.draw(data["train"]["image"], key, step, BATCH_SIZE)
    return {"image": images, "label": data["train"]["label"][rows]}


def _init(key):
    return MODEL.init(key, jnp.zeros((1, CANVAS, CANVAS, 1)))["params"]


def _predict(params, batch) -> Any:
    return MODEL.apply({"params": params}, batch["image"][..., None])


def digits_vit() -> Task:
    return Task(
        name="digits_vit",
        num_steps=3000,
        eval_every=15,
        warmup_steps=100,
        batch_size=BATCH_SIZE,
        data=_data,
        init=_init,
        batch=_batch,
        uses=("canvas.py", "classification.py", "transformers.py"),
        **classification(_predict),
    )
