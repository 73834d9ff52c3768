"""Decompositions of one matrix at a time, also under `jax.vmap`.

On CPU a batched decomposition waits for workers of the thread pool that it runs on. Several
at once deadlock (jaxlib 0.10, ParallelBatchMap), so an ensemble of models, or of
measurements, could hang. Under `jax.vmap` these functions loop over the batch instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.custom_batching import sequential_vmap


def one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of single matrices, with a loop in place of every batch."""
    return sequential_vmap(function)


eigh = one_at_a_time(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
