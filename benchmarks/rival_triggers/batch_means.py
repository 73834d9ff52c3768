"""Means of an autocorrelated series with a confidence interval, from O(1) state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats


class BatchMeans(NamedTuple):
    """A fixed number of batch means; when all are filled, neighbours merge in pairs."""

    means: jax.Array  # [series, batches], float32; in order of time
    filled: jax.Array  # [], int32; batches that are complete
    size: jax.Array  # [], int32; samples of a batch, a power of two
    partial: jax.Array  # [series], float32; sum over the batch that is filling
    pending: jax.Array  # [], int32; samples in it


class Interval(NamedTuple):
    mean: jax.Array  # [series], float32
    half_width: jax.Array  # [series], float32; inf below two batches
    halves: jax.Array  # [2, series], float32; means of the older and the newer half
    samples: jax.Array  # [], int32; that the means are over


def init(series: int, batches: int) -> BatchMeans:
    return BatchMeans(
        means=jnp.zeros([series, batches], jnp.float32), filled=jnp.zeros([], jnp.int32),
        size=jnp.ones([], jnp.int32), partial=jnp.zeros([series], jnp.float32),
        pending=jnp.zeros([], jnp.int32),
    )  # fmt: skip


def update(state: BatchMeans, sample: jax.Array) -> BatchMeans:
    """Adds one sample of every series, [series]."""
    batches = state.means.shape[1]
    partial, pending = state.partial + sample, state.pending + 1
    closes = pending == state.size
    closed = state.means.at[:, state.filled].set(partial / state.size.astype(jnp.float32))
    means = jnp.where(closes, closed, state.means)
    filled = state.filled + closes.astype(jnp.int32)
    pairs, full = means.reshape(-1, batches // 2, 2).mean(axis=2), filled == batches
    return BatchMeans(
        means=jnp.where(full, jnp.concatenate([pairs, jnp.zeros_like(pairs)], axis=1), means),
        filled=jnp.where(full, batches // 2, filled),
        size=jnp.where(full, 2 * state.size, state.size),
        partial=jnp.where(closes, 0.0, partial),
        pending=jnp.where(closes, 0, pending),
    )


def interval(state: BatchMeans, keep: float, confidence: float) -> Interval:
    """Mean over the latest share `keep` of the samples, with Student's two-sided interval."""
    batches = state.means.shape[1]
    kept = jnp.ceil(keep * state.filled.astype(jnp.float32)).astype(jnp.int32)
    index = jnp.arange(batches)
    inside = (index >= state.filled - kept) & (index < state.filled)
    newer = inside & (index >= state.filled - kept // 2)

    def mean_of(chosen: jax.Array) -> jax.Array:
        count = jnp.maximum(jnp.sum(chosen), 1).astype(jnp.float32)
        return jnp.sum(jnp.where(chosen, state.means, 0.0), axis=1) / count

    mean, halves = mean_of(inside), jnp.stack([mean_of(inside & ~newer), mean_of(newer)])
    gaps = jnp.where(inside, state.means - mean[:, None], 0.0)
    freedom = jnp.maximum(kept - 1, 1)
    # Quantiles for 1, 2, ... degrees of freedom: a table, since JAX has no inverse of t.
    table = np.asarray(stats.t.ppf(0.5 + confidence / 2, np.arange(1, batches + 1)), np.float32)
    variance = jnp.sum(jnp.square(gaps), axis=1) / freedom.astype(jnp.float32)
    error = jnp.sqrt(variance / jnp.maximum(kept, 1).astype(jnp.float32))
    half_width = jnp.asarray(table)[freedom - 1] * error
    half_width = jnp.where(kept < 2, jnp.inf, half_width)
    return Interval(mean, half_width, halves, kept * state.size)
