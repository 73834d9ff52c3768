"""The default probe: a sketch of the gradients that training computes anyway."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.rows import row_spectrum, trusted_error, white_noise_rank
from fgo_jax.linalg.sketch import sketch_parts
from fgo_jax.probes.groups import Groups, check_groups, slots
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs


class GradientStreamState(NamedTuple):
    """Half-finished pair, rows of the running window, and the last window's numbers."""

    evaluations: jax.Array  # [], int32; windows closed
    next_row: jax.Array  # [], int32; step at which the next gradient is read
    window_seed: jax.Array  # [], uint32; seed of the window's two sketches
    pending: jax.Array  # [2, 1 + groups, 2, width], float32; sketches of a pair's gradients
    half: jax.Array  # [], int32; 1 while a pair waits for its second gradient
    filled: jax.Array  # [], int32; pairs in the window
    differences: jax.Array  # [pairs, 1 + groups, 2, width], float32; (g' - g) / sqrt 2
    products: jax.Array  # [pairs], float32; <g, g'>
    norms: jax.Array  # [pairs], float32; (|g|^2 + |g'|^2) / 2
    held: jax.Array  # [], int32; windows whose denominator was not positive
    estimates: jax.Array  # [signals, 2], float32; value and standard error


SIGNALS = (
    "intrinsic_dimension",
    "energy_rank",
    "energy_fraction",
    "trace",
    "top_eigenvalue",
    "agreement",
)
GROUP_SIGNALS = ("trace", "intrinsic_dimension")


def gradient_stream(
    pairs: int = 8,
    width: int = 1024,
    every: int | None = None,
    growth: float = 0.02,
    energy: float = 0.9,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the gradient covariance from pairs of successive training gradients.

    At two successive steps the gradients :math:`g, g'` are sketched; the rows
    :math:`d = (g' - g)/\sqrt 2` have, at equal parameters, the covariance C of the
    gradient noise as their second moment, and :math:`\langle g, g' \rangle` is the
    squared norm of the mean gradient. After ``pairs`` rows the window closes:

    - ``intrinsic_dimension``: :math:`(\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2`, the
      ratio of two unbiased sums (:func:`fgo_jax.linalg.sums.uncentred_sums`).
      Two independent sketches make each product of two inner products unbiased over
      the sketch as well.
    - ``energy_rank``, ``energy_fraction``: eigenvalues of the rows' Gram matrix that
      hold ``energy`` of its trace, out of ``pairs``, which is fewer than C has. Near
      what white noise reads (:func:`fgo_jax.linalg.rows.white_noise_rank`) this says only
      that there are too few rows: the error is then infinite and no trigger acts on it.
    - ``trace`` of C, unbiased, and ``top_eigenvalue``, too large by up to the trace
      divided by ``pairs``.
    - ``agreement``: :math:`\sum \langle g, g' \rangle / \sum \frac12(|g|^2 + |g'|^2)`,
      near 1 where there is no noise and near 0 where there is nothing else.

    The parameters move between the two gradients, so a row also holds
    :math:`H\,\Delta\theta / \sqrt 2`; at high learning rates the numbers are of that
    mixture. On a small vision transformer the dimension of such rows was within 13 % of
    that of rows at fixed parameters (two standard errors or less) from step 1000 on, at
    rates from 1e-3 to 1e-2 of Adam, and 13 to 46 % above it at step 200
    (``benchmarks/results/stream.json``). Rows are read where the phase's metric puts them
    (see ``rows`` of :class:`fgo_jax.probes.ProbeInputs`). Each window draws new sketches
    from the key.
    With ``groups``, ``trace/NAME`` and ``intrinsic_dimension/NAME`` are those of the
    group's own gradients; each group costs one more sketch, in memory and little time.

    Args:
      pairs: rows of a window.
      width: entries of each of the two sketches; memory is ``8 * width * (pairs + 1)``
        bytes, whatever the number of parameters, and as much again for each group.
      every: steps from one pair to the next, at least 2. None spaces pairs by
        ``max(2, growth * step)``, so that the geometry, which changes on the scale of
        the steps taken, is looked at equally often per factor of time and the probe's
        share of the training time goes to zero.
      growth: see ``every``.
      energy: share of the trace that the energy rank holds.
      groups: parts of the tree to measure apart, from
        :func:`fgo_jax.probes.layer_groups`.

    Raises:
      ValueError: for sizes that are no positive integers, ``every`` below 2, or, when
        traced, groups of parameters that are not there.

    Example:
      >>> import fgo_jax as fgo
      >>> fgo.probes.gradient_stream(pairs=16).signals[0]
      'intrinsic_dimension'

    Sources: the ratio's bias, Chun et al. (ICLR 2026); CountSketch, Charikar et al.
    (2002).
    """
    _checks.positive_int("pairs", pairs, 4)
    _checks.positive_int("width", width)
    if every is not None:
        _checks.integer("every", every, 2)
    _checks.positive("growth", growth)
    _checks.fraction("energy", energy)
    names = check_groups(groups)
    signals = _signals(names)
    return Probe(
        signals=signals,
        init=functools.partial(_init, pairs=pairs, width=width, names=names, signals=signals),
        due=lambda state, step: (step >= state.next_row) | (step == 0),
        measure=functools.partial(
            _measure, width=width, every=every, growth=growth, energy=energy, groups=groups
        ),
        read=lambda state: {
            name: Estimate(*pair) for name, pair in zip(signals, state.estimates, strict=True)
        },
        renew=lambda state: state._replace(
            half=jnp.zeros_like(state.half), filled=jnp.zeros_like(state.filled)
        ),
    )


def _signals(names: tuple[str, ...]) -> tuple[str, ...]:
    return SIGNALS + tuple(f"{signal}/{name}" for name in names for signal in GROUP_SIGNALS)


def _init(
    params: Any, *, pairs: int, width: int, names: tuple[str, ...], signals: tuple[str, ...]
) -> GradientStreamState:
    del params  # the sketch's size does not depend on the model's
    sketch = [1 + len(names), 2, width]
    return GradientStreamState(
        evaluations=jnp.zeros([], jnp.int32),
        next_row=jnp.zeros([], jnp.int32),
        window_seed=jnp.zeros([], jnp.uint32),
        pending=jnp.zeros([2, *sketch], jnp.float32),
        half=jnp.zeros([], jnp.int32),
        filled=jnp.zeros([], jnp.int32),
        differences=jnp.zeros([pairs, *sketch], jnp.float32),
        products=jnp.zeros([pairs], jnp.float32),
        norms=jnp.zeros([pairs], jnp.float32),
        held=jnp.zeros([], jnp.int32),
        estimates=jnp.full([len(signals), 2], jnp.nan, jnp.float32),
    )


def _measure(
    inputs: ProbeInputs,
    state: GradientStreamState,
    *,
    width: int,
    every: int | None,
    growth: float,
    energy: float,
    groups: Groups | None,
) -> GradientStreamState:
    # Training that is restarted counts from 0 again: what had been gathered is of another time.
    anew = inputs.step == 0
    half, slot = jnp.where(anew, 0, state.half), jnp.where(anew, 0, state.filled)
    # All rows that meet in one Gram matrix share their signs; the next window's are
    # new, so that the sketch's error averages out over a run.
    seed = jax.lax.cond(
        (slot == 0) & (half == 0),
        lambda key, old: jax.random.bits(key, dtype=jnp.uint32),
        lambda key, old: old,
        inputs.key,
        state.window_seed,
    )
    everything, *members = slots(groups, inputs.rows)
    rest = sorted(set(everything).difference(*members))
    parts = sketch_parts(inputs.rows, seed, width, [rest, *members])
    row = jnp.stack([sum(parts, jnp.zeros([2, width], jnp.float32)), *parts[1:]])

    # Every array is written in place and read afterwards: else XLA would copy it at every step
    # of the training, measured or not. What a pair's first gradient puts into the window, its
    # second one writes over.
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    pending = put(state.pending, row, half)
    first = pending[0]

    state = state._replace(
        window_seed=seed,
        pending=pending,
        half=1 - half,
        filled=slot + half,
        differences=put(state.differences, (row - first) * jnp.float32(0.5**0.5), slot),
        products=put(state.products, jnp.vdot(first[0], row[0]) / 2, slot),
        norms=put(state.norms, (jnp.vdot(first[0], first[0]) + jnp.vdot(row[0], row[0])) / 4, slot),
        next_row=inputs.step + jnp.where(half == 1, _gap(inputs.step, every, growth), 1),
    )
    close = functools.partial(
        _close, energy=energy, size=optax.tree.size(inputs.rows), names=check_groups(groups)
    )
    # Only what closing changes comes back: a row that a branch hands on is copied.
    changed = jax.lax.cond(
        state.filled == state.products.shape[0],
        lambda window: _changed(close(window)),
        _changed,
        state,
    )
    return state._replace(**changed)


def _changed(state: GradientStreamState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("evaluations", "filled", "held", "estimates")}


def _gap(step: jax.Array, every: int | None, growth: float) -> jax.Array:
    """Steps from a pair's second gradient to the next pair's first."""
    if every is not None:
        return jnp.asarray(every, jnp.int32) - 1
    return jnp.maximum(2, (growth * step.astype(jnp.float32)).astype(jnp.int32)) - 1


def _ceiling(size: int, differences: jax.Array, energy: float) -> jax.Array:
    """The energy rank of white noise with as many rows and parameters, so sketched."""
    pairs, _, _, width = differences.shape
    size = max(size, 1)
    # Inner products of two rows have a share 1 / d of their norms' from d parameters, and
    # 1 / k from a sketch of k entries.
    return white_noise_rank(pairs, 1.0 / (1.0 / size + 0.5 / width), energy)


def _close(
    state: GradientStreamState, *, energy: float, size: int, names: tuple[str, ...]
) -> GradientStreamState:
    pairs, signals = state.products.shape[0], _signals(names)
    ceiling = _ceiling(size, state.differences, energy)
    grams = jnp.einsum(
        "iask,jask->asij", state.differences, state.differences, precision=jax.lax.Precision.HIGHEST
    )
    dimensions = [_dimension(gram) for gram in grams]
    traces = [jnp.diagonal(jnp.mean(gram, 0)) for gram in grams]
    read = row_spectrum(jnp.mean(grams[0], 0), pairs, energy)
    rank_error = trusted_error(
        read.energy_rank, jnp.std(read.rank_influence, ddof=1) / pairs**0.5, ceiling
    )
    power = jnp.sum(state.norms)
    known = power > 0  # where all gradients are zero, there is nothing to say
    agreement = jnp.sum(state.products) / jnp.where(known, power, 1.0)
    estimates = {
        "energy_rank": jnp.stack([read.energy_rank, rank_error]),
        "energy_fraction": jnp.stack([read.energy_rank, rank_error]) / pairs,
        "top_eigenvalue": jnp.stack(
            [read.top_eigenvalue, jnp.std(read.top_influence, ddof=1) / pairs**0.5]
        ),
        "agreement": jnp.where(
            known,
            jnp.stack([agreement, _jackknife_ratio(state.products, state.norms)]),
            jnp.nan,
        ),
    }
    for suffix, trace, dimension in zip(
        ("", *(f"/{name}" for name in names)), traces, dimensions, strict=True
    ):
        name = f"intrinsic_dimension{suffix}"
        held = state.estimates[signals.index(name)]
        estimates[name] = jnp.where(jnp.isnan(dimension[0]), held, dimension)
        error = jnp.std(trace, ddof=1) / pairs**0.5
        estimates[f"trace{suffix}"] = jnp.stack([jnp.mean(trace), error])
    return state._replace(
        evaluations=state.evaluations + 1,
        filled=jnp.zeros_like(state.filled),
        held=state.held + jnp.where(jnp.isnan(dimensions[0][0]), 1, 0),
        estimates=jnp.stack([estimates[name].astype(jnp.float32) for name in signals]),
    )


def _dimension(gram: jax.Array) -> jax.Array:
    """[2]: participation ratio and its error from the Gram matrices [2, n, n]; NaN: none."""
    pairs = gram.shape[-1]
    # One sketch's K_ij times the other's is an unbiased K_ij^2; squaring one would
    # add the sketch's own variance, which reads as a smaller dimension.
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
        jnp.sum(denominators) - denominators, 1e-30
    )
    return jnp.sqrt((rows - 1) * jnp.var(ratios))
