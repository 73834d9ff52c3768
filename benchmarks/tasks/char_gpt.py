"""A small GPT, character by character, on the language reference that ships with CPython.

The text is `pydoc_data.topics` in alphabetical order, without paragraphs that have a line in
common with what came before: topics quote each other at length, and what validation repeats
of the training text would be known by heart. The text belongs to a Python version;
`data_digest` tells which one a result is about.
"""

from __future__ import annotations

import collections
import functools
import hashlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.tasks.task import Task

BATCH_SIZE = 32
WINDOW = 64
VOCABULARY = 96  # the commonest 95 characters, and one symbol for all others
OTHER = VOCABULARY - 1
# Of every twenty successive blocks the tenth is for validation and the twentieth for testing.
# Topics differ; a single block at the end would be about one of them.
BLOCK = 2048
PERIOD = 20
VALIDATION, TEST = 9, 19
VALIDATION_WINDOWS = 80  # as many as leave 200 evaluations at a tenth of a run's time


class Block(nn.Module):
    """Pre-norm causal attention and MLP."""

    heads: int
    mlp: int

    @nn.compact
    def __call__(self, x):  # [batch, tokens, dim]
        tokens, dim = x.shape[-2:]
        split = (*x.shape[:-1], self.heads, dim // self.heads)
        qkv = nn.Dense(3 * dim, name="qkv")(nn.LayerNorm()(x))
        q, k, v = (part.reshape(split) for part in jnp.split(qkv, 3, axis=-1))
        mixed = nn.dot_product_attention(q, k, v, mask=jnp.tril(jnp.ones((tokens, tokens), bool)))
        x = x + nn.Dense(dim, name="out")(mixed.reshape(x.shape))
        hidden = nn.gelu(nn.Dense(self.mlp, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(dim, name="down")(hidden)


class CharGPT(nn.Module):
    """Learned positions, an output layer of its own."""

    dim: int = 64
    depth: int = 2
    heads: int = 4
    mlp: int = 256

    @nn.compact
    def __call__(self, text):  # [batch, tokens], int32
        small = nn.initializers.normal(0.02)
        x = nn.Embed(VOCABULARY, self.dim, name="embed")(text)
        x = x + self.param("positions", small, (text.shape[-1], self.dim))
        for index in range(self.depth):
            x = Block(self.heads, self.mlp, name=f"block_{index}")(x)
        return nn.Dense(VOCABULARY, kernel_init=small, name="head")(nn.LayerNorm()(x))


MODEL = CharGPT()


@functools.cache
def text() -> str:
    """All topics without what they repeat, and without tables, whose rules are all alike."""
    from pydoc_data.topics import topics

    seen, kept = set(), []
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            lines = {" ".join(line.split()) for line in paragraph.splitlines()} - {""}
            if lines and "+--" not in paragraph and seen.isdisjoint(lines):
                kept.append(paragraph.rstrip())
            seen |= lines
    return "\n\n".join(kept)


def data_digest() -> str:
    """Length and hash of the text."""
    return f"{len(text())} characters, sha256 {hashlib.sha256(text().encode()).hexdigest()[:16]}"


def characters() -> list[str]:
    """The vocabulary, the commonest first."""
    counts = collections.Counter(text())
    return sorted(counts, key=lambda c: (-counts[c], c))[:OTHER]


@functools.cache
def _data(seed: int):
    del seed  # the split is fixed: seeds differ in initial weights and batches
    number = {c: i for i, c in enumerate(characters())}
    tokens = np.asarray([number.get(c, OTHER) for c in text()], np.int32)
    blocks = tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK)
    place = np.arange(len(blocks)) % PERIOD
    return {
        "train": jnp.asarray(blocks[(place != VALIDATION) & (place != TEST)].reshape(-1)),
        "validation": _windows(blocks[place == VALIDATION], VALIDATION_WINDOWS),
        "test": _windows(blocks[place == TEST]),
    }


def _windows(blocks, count: int | None = None):
    """Inputs and labels from windows within blocks; `count` of them, evenly spread."""
    each = (BLOCK - 1) // WINDOW
    starts = np.arange(each) * WINDOW
    inputs, labels = (
        np.concatenate([blocks[:, s + shift : s + shift + WINDOW, None] for s in starts], axis=2)
        .transpose(0, 2, 1)
        .reshape(-1, WINDOW)
        for shift in (0, 1)
    )
    rows = np.arange(len(inputs))
    if count is not None:
        rows = np.linspace(0, len(inputs) - 1, count).round().astype(int)
    return {"text": jnp.asarray(inputs[rows]), "label": jnp.asarray(labels[rows])}


def _batch(data, key, step):
    train = data["train"]
    starts = jax.random.randint(
        jax.random.fold_in(key, step), (BATCH_SIZE, 1), 0, train.shape[0] - WINDOW
    )
    rows = train[starts + jnp.arange(WINDOW + 1)]
    return {"text": rows[:, :-1], "label": rows[:, 1:]}


def _init(key):
    return MODEL.init(key, jnp.zeros((1, WINDOW), jnp.int32))["params"]


def _predict(params, batch) -> Any:
    return MODEL.apply({"params": params}, batch["text"])


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _loss(params, batch):
    return _cross_entropy(_predict(params, batch), batch["label"])


def _evaluate(data, params):
    return _loss(params, data["validation"])


def _test(data, params):
    logits, labels = _predict(params, data["test"]), data["test"]["label"]
    return {
        "cross_entropy": _cross_entropy(logits, labels),
        "accuracy": jnp.mean((logits.argmax(-1) == labels).astype(jnp.float32)),
    }


def char_gpt() -> Task:
    return Task(
        name="char_gpt",
        num_steps=1200,
        eval_every=6,
        warmup_steps=100,
        batch_size=BATCH_SIZE,
        data=_data,
        init=_init,
        batch=_batch,
        loss=_loss,
        predict=_predict,
        loss_name="softmax_cross_entropy",
        evaluate=_evaluate,
        test=_test,
        metric="validation cross-entropy",
        timed_steps=20,
        data_digest=data_digest,
    )
