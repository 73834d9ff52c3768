"""The classic deep autoencoder, at the size of scikit-learn's 8 x 8 digits.

A funnel of sigmoid layers down to a narrow linear code and back (Hinton and Salakhutdinov,
2006; Martens and Grosse, 2015), whose gradients are so unevenly scaled that it has been the
touchstone of second-order methods ever since. Each digit is placed at random on a 12 x 12
canvas, 25 places in all, so 1,197 training images are not memorised. Validation and test
images have one place each, drawn once.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.tasks import canvas
from benchmarks.tasks.canvas import CANVAS
from benchmarks.tasks.task import Task

BATCH_SIZE = 256
FUNNEL = (128, 64, 32)
CODE = 12
CONNECTIONS = 15


def sparse(key, shape, dtype=jnp.float32):
    """A few standard normal weights into each unit, so that deep sigmoid layers pass a signal on.

    The initialisation of this benchmark since Martens, 2010: with dense small weights every
    layer but the first sees a constant, and the network forgets its input.
    """
    place_key, weight_key = jax.random.split(key)
    ranks = jnp.argsort(jax.random.uniform(place_key, shape), axis=0)
    return jnp.where(ranks < CONNECTIONS, jax.random.normal(weight_key, shape, dtype), 0)


Dense = functools.partial(nn.Dense, kernel_init=sparse)


class Autoencoder(nn.Module):
    """144-128-64-32-12-32-64-128-144; the code and the outputs are linear."""

    funnel: tuple[int, ...] = FUNNEL
    code: int = CODE

    @nn.compact
    def __call__(self, pixels):  # [batch, 144]
        x = pixels
        for index, width in enumerate(self.funnel):
            x = nn.sigmoid(Dense(width, name=f"down_{index}")(x))
        x = Dense(self.code, name="code")(x)
        for index, width in enumerate(reversed(self.funnel)):
            x = nn.sigmoid(Dense(width, name=f"up_{index}")(x))
        return Dense(pixels.shape[-1], name="pixels")(x)


MODEL = Autoencoder()


@functools.cache
def _data(seed: int):
    del seed  # the split is fixed: seeds differ in initial weights and batches
    images = {name: split["image"] for name, split in canvas.splits().items()}
    return {name: x if name == "train" else _example(x) for name, x in images.items()}


def _example(images):
    pixels = images.reshape(len(images), -1)
    return {"pixels": pixels, "label": pixels}  # what goes in is what shall come out


def _batch(data, key, step):
    return _example(canvas.draw(data["train"], key, step, BATCH_SIZE)[1])


def _init(key):
    return MODEL.init(key, jnp.zeros((1, CANVAS**2)))["params"]


def _predict(params, batch) -> Any:
    return MODEL.apply({"params": params}, batch["pixels"])


def _cross_entropy(logits, pixels):
    return optax.sigmoid_binary_cross_entropy(logits, pixels).sum(-1).mean()


def _loss(params, batch):
    return _cross_entropy(_predict(params, batch), batch["label"])


def _evaluate(data, params):
    return _loss(params, data["validation"])


def _test(data, params):
    logits, pixels = _predict(params, data["test"]), data["test"]["label"]
    return {
        "cross_entropy": _cross_entropy(logits, pixels),
        "squared_error": jnp.square(jax.nn.sigmoid(logits) - pixels).sum(-1).mean(),
    }


def digits_autoencoder() -> Task:
    return Task(
        name="digits_autoencoder",
        num_steps=2000,
        eval_every=10,
        warmup_steps=100,
        batch_size=BATCH_SIZE,
        data=_data,
        init=_init,
        batch=_batch,
        loss=_loss,
        predict=_predict,
        loss_name="sigmoid_cross_entropy",
        evaluate=_evaluate,
        test=_test,
        metric="validation cross-entropy",
        uses=("canvas.py",),
    )
