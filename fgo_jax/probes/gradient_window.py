"""What a full window of gradient pairs says about the gradient noise."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg.rows import row_spectrum, trusted_error, white_noise_rank

SIGNALS = (
    "intrinsic_dimension",
    "energy_rank",
    "energy_fraction",
    "trace",
    "top_eigenvalue",
    "agreement",
)
GROUP_SIGNALS = ("trace", "intrinsic_dimension")


def signal_names(groups: tuple[str, ...]) -> tuple[str, ...]:
    """The signals of the whole tree, then those of each group as ``signal/group``."""
    return SIGNALS + tuple(f"{signal}/{name}" for name in groups for signal in GROUP_SIGNALS)


def window_estimates(
    differences: jax.Array,
    products: jax.Array,
    norms: jax.Array,
    *,
    energy: Any,
    size: int,
    groups: tuple[str, ...],
) -> dict[str, jax.Array]:
    """Value and standard error, [2], of every signal; NaN for a dimension that is none.

    Args:
      differences: [pairs, 1 + groups, 2, width], float32; two sketches of each row
        (g' - g) / sqrt 2, of the whole tree and of each group.
      products: [pairs], float32; <g, g'>.
      norms: [pairs], float32; (|g|^2 + |g'|^2) / 2.
      energy: share of the trace that the energy rank holds.
      size: number of parameters.
      groups: names.
    """
    pairs, _, _, width = differences.shape
    # A power of two as unit changes no digit, and the fourth powers below stay within float32.
    unit = jnp.frexp(jnp.max(jnp.abs(differences)))[1]
    differences = jnp.ldexp(differences, -unit)
    grams = jnp.einsum(
        "iask,jask->asij", differences, differences, precision=jax.lax.Precision.HIGHEST
    )
    dimensions = [_dimension(gram) for gram in grams]
    traces = [jnp.diagonal(jnp.mean(gram, 0)) for gram in grams]
    read = row_spectrum(jnp.mean(grams[0], 0), pairs, energy)
    rank_error = trusted_error(
        read.energy_rank,
        jnp.std(read.rank_influence, ddof=1) / pairs**0.5,
        _ceiling(size, pairs, width, energy),
    )

    def squared(mean: jax.Array, rows: jax.Array) -> jax.Array:
        error = jnp.std(rows, ddof=1) / pairs**0.5
        return jnp.ldexp(jnp.stack([mean, error]), 2 * unit)

    power = jnp.sum(norms)
    known = power > 0  # false where all gradients are zero
    agreement = jnp.sum(products) / jnp.where(known, power, 1.0)
    estimates = {
        "energy_rank": jnp.stack([read.energy_rank, rank_error]),
        "energy_fraction": jnp.stack([read.energy_rank, rank_error]) / pairs,
        "top_eigenvalue": squared(read.top_eigenvalue, read.top_influence),
        "agreement": jnp.where(
            known, jnp.stack([agreement, _jackknife_ratio(products, norms)]), jnp.nan
        ),
    }
    suffixes = ("", *(f"/{name}" for name in groups))
    for suffix, trace, dimension in zip(suffixes, traces, dimensions, strict=True):
        estimates[f"trace{suffix}"] = squared(jnp.mean(trace), trace)
        estimates[f"intrinsic_dimension{suffix}"] = dimension
    return {name: estimates[name].astype(jnp.float32) for name in signal_names(groups)}


def _ceiling(size: int, pairs: int, width: int, energy: Any) -> jax.Array:
    """The energy rank that white noise would read with as many pairs and parameters.

    The squared inner product of two rows, relative to their norms, is 1 / d for d parameters,
    and a sketch of k entries adds 1 / k; two sketches are averaged.
    """
    return white_noise_rank(pairs, 1.0 / (1.0 / max(size, 1) + 0.5 / width), energy)


def _dimension(gram: jax.Array) -> jax.Array:
    """[2]: participation ratio and error from the Gram matrices [2, n, n]; NaN: no ratio."""
    pairs = gram.shape[-1]
    # The product of K_ij from two independent sketches is an unbiased K_ij^2. The square of
    # one would add the sketch's own variance, which reads as a smaller dimension.
    sums = functools.partial(_cross_sums, gram)
    numerator, denominator = sums(jnp.ones(pairs, jnp.float32))
    leave_one_out = jax.vmap(sums)(1.0 - jnp.eye(pairs, dtype=jnp.float32))
    good = (denominator > 0) & (numerator > 0)
    dimension = numerator / jnp.where(good, denominator, 1.0)
    estimate = jnp.stack([dimension, dimension * _jackknife_log(leave_one_out)])
    return jnp.where(good, estimate, jnp.nan)


def _cross_sums(gram: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Off-diagonal sums of K1_ii K2_jj and K1_ij K2_ij over the rows with weight one."""
    diagonals = jnp.diagonal(gram, axis1=1, axis2=2) * weights
    off = (1.0 - jnp.eye(weights.shape[0], dtype=gram.dtype)) * jnp.outer(weights, weights)
    numerator = jnp.sum(diagonals[0]) * jnp.sum(diagonals[1]) - jnp.sum(diagonals[0] * diagonals[1])
    return numerator, jnp.sum(gram[0] * gram[1] * off)


def _jackknife_log(sums: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Standard error of log(numerator / denominator); NaN if a sum is not positive."""
    numerator, denominator = sums
    rows = numerator.shape[0]
    good = jnp.all((numerator > 0) & (denominator > 0))
    logs = jnp.log(jnp.maximum(numerator, 1e-30)) - jnp.log(jnp.maximum(denominator, 1e-30))
    return jnp.where(good, jnp.sqrt((rows - 1) * jnp.var(logs)), jnp.nan)


def _jackknife_ratio(numerators: jax.Array, denominators: jax.Array) -> jax.Array:
    """Standard error of sum(numerators) / sum(denominators) over independent pairs."""
    rows = numerators.shape[0]
    ratios = (jnp.sum(numerators) - numerators) / jnp.maximum(
        jnp.sum(denominators) - denominators, jnp.finfo(jnp.float32).tiny
    )
    return jnp.sqrt((rows - 1) * jnp.var(ratios))
