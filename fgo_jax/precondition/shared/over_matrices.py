"""A function of many small matrices, such as an eigendecomposition, in few compiled loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg.decompositions import one_at_a_time


def over_matrices(function: Callable[..., Any], *operands: Sequence[jax.Array]) -> list[Any]:
    """function(*matrices [d, d]) over factors [*batch, d, d], for every place in the operands.

    Factors of equal size share one compiled loop. They are not batched: on CPU a batched
    decomposition waits for workers of the pool that it runs on itself. A few of them at once
    (three sizes, or eight simulated devices) then wait for ever (jaxlib 0.10, ParallelBatchMap).
    `jax.vmap` over an ensemble would batch them again, so it becomes a loop as well.
    """
    one_by_one = one_at_a_time(lambda *matrices: function(*matrices))
    first = operands[0]
    by_size: dict[int, list[int]] = {}
    for i, factor in enumerate(first):
        by_size.setdefault(factor.shape[-1], []).append(i)
    results: list[Any] = [None] * len(first)
    for d, same in by_size.items():
        stacked = tuple(
            jnp.concatenate([operand[i].reshape(-1, d, d) for i in same]) for operand in operands
        )
        mapped = jax.lax.map(lambda matrices: one_by_one(*matrices), stacked)
        start = 0
        for i in same:
            batch = first[i].shape[:-2]
            results[i] = _part(mapped, start, batch)
            start += math.prod(batch)
    return results


def _part(mapped: Any, start: int, batch: tuple[int, ...]) -> Any:
    stop = start + math.prod(batch)
    return jax.tree.map(lambda x: x[start:stop].reshape(*batch, *x.shape[1:]), mapped)
