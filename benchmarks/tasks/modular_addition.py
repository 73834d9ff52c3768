"""The grokking transformer: a + b modulo a prime, learned from part of the table.

Of the 113 * 113 pairs 40 % are for training, the others for validation and test. The network
begins to learn them by heart, then weight decay leads it to a rule that holds for all (Power
et al., 2022; Nanda et al., 2023). So the validation loss rises before it falls.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.supervised import drawn, parted, supervised
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import TokenTransformer

PRIME = 113
EQUALS = PRIME  # the token after a and b, at which the sum is read
TRAIN_SHARE = 0.4
VALIDATION = 1024  # pairs
BATCH_SIZE = 128
MODEL = TokenTransformer(PRIME + 1, dim=64, depth=1, heads=4, mlp=256, only_last=True)


@functools.cache
def _splits():
    pairs = np.random.default_rng(PRIME).permutation(PRIME**2)
    sizes = {"train": round(TRAIN_SHARE * len(pairs)), "validation": VALIDATION, "test": 0}
    data = {}
    for name, chosen in parted(pairs, sizes).items():
        first, second = np.divmod(chosen, PRIME)
        tokens = np.stack([first, second, np.full_like(first, EQUALS)], axis=1)
        labels = (first + second) % PRIME
        examples = {"tokens": tokens, "label": labels}
        data[name] = {key: jnp.asarray(each, jnp.int32) for key, each in examples.items()}
    return data


def _batch(data, key, step):
    return drawn(data["train"], jax.random.fold_in(key, step), BATCH_SIZE)


def modular_addition() -> Task:
    return Task(
        name="modular_addition", num_steps=2000, eval_every=10, batch_size=BATCH_SIZE, batch=_batch,
        weight_decay=1.0, **supervised(_splits, MODEL, "tokens", (1, 3), jnp.int32),
    )  # fmt: skip
