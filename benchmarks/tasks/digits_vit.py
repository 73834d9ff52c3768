"""A small vision transformer on scikit-learn's digits, limited by noise and not by overfitting."""

from benchmarks.tasks import canvas
from benchmarks.tasks.canvas import CANVAS
from benchmarks.tasks.supervised import supervised
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import VisionTransformer

BATCH_SIZE, MODEL = 32, VisionTransformer(patch=3, dim=32, depth=2, heads=4, mlp=64)


def _batch(data, key, step):
    return canvas.batch(data, key, step, BATCH_SIZE)


def digits_vit() -> Task:
    return Task(
        name="digits_vit", num_steps=3000, eval_every=15, batch_size=BATCH_SIZE, batch=_batch,
        **supervised(canvas.splits, MODEL, "image", (1, CANVAS, CANVAS)),
    )  # fmt: skip
