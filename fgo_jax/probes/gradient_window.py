"""What a full window of gradient pairs says about the gradient noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg.rows import (
    power_below,
    row_spectrum,
    trusted_error,
    unit_of,
    white_noise_rank,
)

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
    """Value and standard error, [2], of every signal; NaN for an unknown dimension.

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
    unit = unit_of(differences)
    differences, squared = differences / unit, unit * unit
    grams = jnp.einsum(
        "iask,jask->asij", differences, differences, precision=jax.lax.Precision.HIGHEST
    )
    traces = jnp.diagonal(jnp.mean(grams, 1), axis1=1, axis2=2)  # [1 + groups, pairs]
    read = row_spectrum(jnp.mean(grams[0], 0), pairs, energy)
    # All at once, here and below: a small operation costs more to compile than to run.
    by_row = jnp.concatenate([jnp.stack([read.rank_influence, read.top_influence]), traces])
    rank_error, top_error, *trace_errors = jnp.std(by_row, axis=1, ddof=1) / pairs**0.5
    rank_error = trusted_error(read.energy_rank, rank_error, _ceiling(size, pairs, width, energy))
    power = jnp.sum(norms)
    known = power > 0  # false where all gradients are zero
    agreement = jnp.sum(products) / jnp.where(known, power, 1.0)
    estimates = {
        "energy_rank": jnp.stack([read.energy_rank, rank_error]),
        "energy_fraction": jnp.stack([read.energy_rank, rank_error]) / pairs,
        "top_eigenvalue": squared * jnp.stack([read.top_eigenvalue, top_error]),
        "agreement": jnp.where(
            known, jnp.stack([agreement, _jackknife_ratio(products, norms)]), jnp.nan
        ),
    }
    suffixes = ("", *(f"/{name}" for name in groups))
    of_part = zip(suffixes, jnp.mean(traces, 1), trace_errors, _dimensions(grams), strict=True)
    for suffix, trace, error, dimension in of_part:
        estimates[f"trace{suffix}"] = squared * jnp.stack([trace, error])
        estimates[f"intrinsic_dimension{suffix}"] = dimension
    return {name: estimates[name].astype(jnp.float32) for name in signal_names(groups)}


def _ceiling(size: int, pairs: int, width: int, energy: Any) -> jax.Array:
    """The energy rank that white noise would read with as many pairs and parameters.

    The squared inner product of two rows, relative to their norms, is 1 / d for d parameters,
    and a sketch of k entries adds 1 / k; two sketches are averaged.
    """
    return white_noise_rank(pairs, 1.0 / (1.0 / max(size, 1) + 0.5 / width), energy)


def _dimensions(grams: jax.Array) -> jax.Array:
    """[m, 2]: participation ratios and errors from Gram matrices [m, 2, n, n]; NaN: no ratio."""
    pairs = grams.shape[-1]
    if len(grams) > 1:  # a part of far smaller gradients needs a unit of its own
        unit = power_below(jnp.max(jnp.abs(grams), axis=(1, 2, 3), keepdims=True))
        grams = grams / jnp.where((unit > 0) & (unit < 2.0**-20), unit, 1.0)
    # The product of K_ij from two independent sketches is an unbiased K_ij^2. The square of
    # one would add the sketch's own variance, which reads as a smaller dimension.
    everything, all_but_one = jnp.ones([1, pairs]), 1.0 - jnp.eye(pairs)
    weights = jnp.concatenate([everything, all_but_one]).astype(jnp.float32)
    numerators, denominators = _cross_sums(grams, weights)
    numerator, denominator = numerators[:, 0], denominators[:, 0]
    good = (denominator > 0) & (numerator > 0)
    dimension = numerator / jnp.where(good, denominator, 1.0)
    error = dimension * _jackknife_log(numerators[:, 1:], denominators[:, 1:])
    return jnp.where(good[:, None], jnp.stack([dimension, error], 1), jnp.nan)


def _cross_sums(grams: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over i != j of K1_ii K2_jj and K1_ij K2_ij, each [m, k].

    Args:
      grams: [m, 2, n, n]; K1 and K2.
      weights: [k, n]; one for the rows that count.
    """
    diagonals = (
        jnp.diagonal(grams, axis1=2, axis2=3)[:, :, None, :] * weights[None, None]
    )  # [m, 2, k, n]
    first, second = diagonals[:, 0], diagonals[:, 1]
    numerators = jnp.sum(first, -1) * jnp.sum(second, -1) - jnp.sum(first * second, -1)
    off = (1.0 - jnp.eye(grams.shape[-1]))[None] * weights[:, :, None] * weights[:, None, :]
    return numerators, jnp.sum((grams[:, 0] * grams[:, 1])[:, None] * off[None], axis=(2, 3))


def _jackknife_log(numerators: jax.Array, denominators: jax.Array) -> jax.Array:
    """[m], standard errors of log(numerator / denominator); NaN if a sum is not positive."""
    rows = numerators.shape[1]
    good = jnp.all((numerators > 0) & (denominators > 0), axis=1)
    logs = jnp.log(jnp.maximum(numerators, 1e-30)) - jnp.log(jnp.maximum(denominators, 1e-30))
    return jnp.where(good, jnp.sqrt((rows - 1) * jnp.var(logs, axis=1)), jnp.nan)


def _jackknife_ratio(numerators: jax.Array, denominators: jax.Array) -> jax.Array:
    """Standard error of sum(numerators) / sum(denominators) over independent pairs."""
    rows = numerators.shape[0]
    ratios = (jnp.sum(numerators) - numerators) / jnp.maximum(
        jnp.sum(denominators) - denominators, jnp.finfo(jnp.float32).tiny
    )
    return jnp.sqrt((rows - 1) * jnp.var(ratios))
