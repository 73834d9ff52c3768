"""A small GPT, character by character, on the language reference that ships with CPython.

The text is `pydoc_data.topics` in alphabetical order, without paragraphs that have a line in
common with what came before: topics quote each other at length, and what validation repeats
of the training text would be known by heart. The text belongs to a Python version;
`data_digest` tells which one a result is about.
"""

import collections
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.tasks.supervised import supervised
from benchmarks.tasks.task import Task
from benchmarks.tasks.transformers import TokenTransformer

BATCH_SIZE, WINDOW = 32, 64
VOCABULARY = 96  # the commonest 95 characters, and one symbol for all others
OTHER = VOCABULARY - 1
# Of every twenty successive blocks the tenth is for validation and the twentieth for testing.
# Topics differ; a single block at the end would be about one of them.
BLOCK, PERIOD = 2048, 20
VALIDATION, TEST = 9, 19
VALIDATION_WINDOWS = 80  # as many as leave 200 evaluations at a tenth of a run's time

MODEL = TokenTransformer(VOCABULARY)


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


@functools.cache
def _splits():
    counts = collections.Counter(text())
    commonest = sorted(counts, key=lambda c: (-counts[c], c))[:OTHER]
    number = {c: i for i, c in enumerate(commonest)}
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
    end = (BLOCK - 1) // WINDOW * WINDOW
    inputs, labels = (blocks[:, s : s + end].reshape(-1, WINDOW) for s in (0, 1))
    rows = np.linspace(0, len(inputs) - 1, count or len(inputs)).round().astype(int)
    return {"text": jnp.asarray(inputs[rows]), "label": jnp.asarray(labels[rows])}


def _batch(data, key, step):
    train = data["train"]
    starts = jax.random.randint(
        jax.random.fold_in(key, step), (BATCH_SIZE, 1), 0, train.shape[0] - WINDOW
    )
    rows = train[starts + jnp.arange(WINDOW + 1)]
    return {"text": rows[:, :-1], "label": rows[:, 1:]}


def char_gpt() -> Task:
    return Task(
        name="char_gpt", num_steps=1200, eval_every=6, batch_size=BATCH_SIZE, batch=_batch,
        timed_steps=20, data_digest=data_digest,
        **supervised(_splits, MODEL, "text", (1, WINDOW), jnp.int32),
    )  # fmt: skip
