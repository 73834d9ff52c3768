"""Notes of how a transformation treats each leaf, for `describe`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.linalg.trees import leaf_names


class Note(NamedTuple):
    """What happens to one leaf."""

    transform: str
    leaf: str  # its path
    shape: tuple[int, ...]
    treatment: str
    own_bytes: int  # of factors, bases and roots, beside the moments


_listeners: ContextVar[list[Note] | None] = ContextVar("fgo_jax_notes", default=None)


@contextlib.contextmanager
def listening() -> Iterator[list[Note]]:
    """Collects the notes of every `init` that runs inside."""
    notes: list[Note] = []
    token = _listeners.set(notes)
    try:
        yield notes
    finally:
        _listeners.reset(token)


def note(transform: str, tree: Any, treatments: Sequence[tuple[str, int]]) -> None:
    """One treatment, with its bytes, for each leaf of the tree."""
    notes = _listeners.get()
    if notes is None:
        return
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), treatments, strict=True)
    for name, leaf, (treatment, own_bytes) in leaves:
        notes.append(Note(transform, name, jnp.shape(leaf), treatment, own_bytes))
