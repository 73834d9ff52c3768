"""The grokking transformer: a + b modulo a prime, learned from part of the table.

Of the 113 * 113 pairs 40 % are for training, the others for validation and test. The network
begins to learn them by heart, then weight decay leads it to a rule that holds for all (Power
et al., 2022; Nanda et al., 2023). So the validation loss rises before it falls.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.classification import classification
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import TokenTransformer

PRIME = 113
EQUALS = PRIME  # the token after a and b, at which the sum is read
TRAIN_SHARE = 0.4
VALIDATION = 1024  # pairs
BATCH_SIZE = 128
MODEL = TokenTransformer(PRIME + 1, dim=64, depth=1, heads=4, mlp=256)


@functools.cache
def _data(seed: int):
    del seed  # the split is fixed: seeds differ in initial weights and batches
    pairs = np.random.default_rng(PRIME).permutation(PRIME**2)
    first, second = np.divmod(pairs, PRIME)
    tokens = np.stack([first, second, np.full_like(first, EQUALS)], axis=1)
    end = round(TRAIN_SHARE * len(pairs))
    rows = {
        "train": slice(end),
        "validation": slice(end, end + VALIDATION),
        "test": slice(end + VALIDATION, None),
    }
    return {
        name: {
            "tokens": jnp.asarray(tokens[chosen], jnp.int32),
            "label": jnp.asarray((first + second)[chosen] % PRIME, jnp.int32),
        }
        for name, chosen in rows.items()
    }


def _batch(data, key, step):
    train = data["train"]
    rows = jax.random.randint(
        jax.random.fold_in(key, step), (BATCH_SIZE,), 0, train["label"].shape[0]
    )
    return {name: values[rows] for name, values in train.items()}


def _init(key):
    return MODEL.init(key, jnp.zeros((1, 3), jnp.int32))["params"]


def _predict(params, batch) -> Any:
    logits: Any = MODEL.apply({"params": params}, batch["tokens"])
    return logits[:, -1]


def modular_addition() -> Task:
    return Task(
        name="modular_addition",
        num_steps=2000,
        eval_every=10,
        warmup_steps=100,
        batch_size=BATCH_SIZE,
        data=_data,
        init=_init,
        batch=_batch,
        weight_decay=1.0,
        uses=("classification.py", "transformers.py"),
        **classification(_predict),
    )
