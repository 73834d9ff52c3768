"""The classic deep autoencoder, at the size of scikit-learn's 8 x 8 digits.

A funnel of sigmoid layers down to a narrow linear code and back (Hinton and Salakhutdinov,
2006; Martens and Grosse, 2015), whose gradients are so unevenly scaled that it has been the
touchstone of second-order methods ever since.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from benchmarks.tasks import canvas
from benchmarks.tasks.canvas import CANVAS
from benchmarks.tasks.supervised import supervised
from benchmarks.tasks.task import Task

BATCH_SIZE, FUNNEL = 256, (128, 64, 32)
CODE, CONNECTIONS = 12, 15


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

    @nn.compact
    def __call__(self, pixels):  # [batch, 144]
        x = pixels
        for index, width in enumerate(FUNNEL):
            x = nn.sigmoid(Dense(width, name=f"down_{index}")(x))
        x = Dense(CODE, name="code")(x)
        for index, width in enumerate(reversed(FUNNEL)):
            x = nn.sigmoid(Dense(width, name=f"up_{index}")(x))
        return Dense(pixels.shape[-1], name="pixels")(x)


MODEL = Autoencoder()


@functools.cache
def _splits():
    data = canvas.splits()
    judged = {name: _example(data[name]["image"]) for name in ("validation", "test")}
    return {"train": data["train"], **judged}


def _example(images):
    pixels = images.reshape(len(images), -1)
    return {"pixels": pixels, "label": pixels}  # what goes in is what shall come out


def _batch(data, key, step):
    return _example(canvas.batch(data, key, step, BATCH_SIZE)["image"])


def _outcomes(logits, pixels):
    return {
        "cross_entropy": optax.sigmoid_binary_cross_entropy(logits, pixels).sum(-1),
        "squared_error": jnp.square(jax.nn.sigmoid(logits) - pixels).sum(-1),
    }


def digits_autoencoder() -> Task:
    return Task(
        name="digits_autoencoder", num_steps=2000, eval_every=10, batch_size=BATCH_SIZE,
        batch=_batch,
        **supervised(
            _splits, MODEL, "pixels", (1, CANVAS**2), outcomes=_outcomes,
            loss_name="sigmoid_cross_entropy",
        ),
    )  # fmt: skip
