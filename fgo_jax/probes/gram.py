"""The gradient covariance, or the empirical Fisher, from rows at fixed parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import sums
from fgo_jax.linalg.operator import bind, check_examples, example_count, is_due
from fgo_jax.linalg.rows import row_spectrum, trusted_error, white_noise_rank
from fgo_jax.probes.example_rows import RowsFn, leaf_gram, row_count
from fgo_jax.probes.groups import Groups, check_groups, slots
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

SIGNALS = (
    "intrinsic_dimension",
    "trace",
    "noise_scale",
    "top_eigenvalue",
    "energy_rank",
    "energy_fraction",
)
GROUP_SIGNALS = ("intrinsic_dimension", "trace", "noise_scale")


class GramState(NamedTuple):
    """Averages over the measurements so far, of the whole tree and then of each group."""

    evaluations: jax.Array  # [], int32; measurements that entered the averages
    held: jax.Array  # [], int32; measurements that gave no new dimension
    unit: jax.Array  # [], float32; first trace; float32 would lose the moments' squares
    moments: jax.Array  # [1 + groups, 4], float32; weighted sums of `_moments`
    covariance: jax.Array  # [1 + groups, 4, 4], float32; of these sums
    eigen: jax.Array  # [3], float32; weighted: top eigenvalue, energy rank, its fraction
    eigen_variance: jax.Array  # [3], float32
    weight: jax.Array  # [], float32; sum of the weights
    ratios: jax.Array  # [1 + groups, 2, 2], float32; dimension, noise scale; with errors
    rank_ceiling: jax.Array  # [], float32; what white noise would read; inf for no ceiling


def gram(
    rows_fn: RowsFn,
    every: int = 200,
    examples: int | None = None,
    batch_size: int | None = None,
    *,
    centred: bool = True,
    row_size: int = 1,
    energy: float = 0.9,
    smoothing: float = 0.5,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the spectrum of gradients from the inner products of n rows.

    The rows :math:`g_1 \dots g_n`, say gradients of single examples, are taken at the same
    parameters and enter through :math:`K_{ij} = \langle g_i, g_j \rangle` only. Signals:

    - ``intrinsic_dimension``: :math:`(\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2`, the ratio of
      two unbiased sums (:func:`fgo_jax.linalg.sums.centred_sums`), where the naive
      ratio of n rows stays below n;
    - ``trace`` of C, unbiased;
    - ``noise_scale``: :math:`\mathrm{tr}\,C / |E g|^2`, the batch size, in examples, at
      which noise and signal are equal;
    - ``top_eigenvalue``: of the rows' covariance, too large by up to trace / n;
    - ``energy_rank``, ``energy_fraction``: eigenvalues of it that hold ``energy`` of its
      trace, and their share of the n - 1 that n rows can show. Few rows make it too small.
      Near what white noise reads it says only that there are too few rows: its error is
      then infinite, and no trigger acts on it.

    C is the covariance of one example's gradient; with ``centred=False`` the empirical
    Fisher :math:`E gg^T` takes its place, in all but the noise scale. Numerators and
    denominators are averaged over measurements (exponentially, debiased) and divided once.
    A dimension whose terms are not both positive is not one: the last one is held and
    counted in ``held``, as is a measurement that is not finite, which changes nothing else.
    A noise scale without a positive denominator is held with an infinite error. Errors are
    jackknife standard errors over the rows, which err upwards.

    A measurement costs what ``rows_fn`` does, about one gradient of its examples, and
    :math:`n^2` products per parameter; it takes memory for n gradients and :math:`8 n^3`
    bytes. Rows are never flattened: leaves sharded over a model axis are reduced where they
    lie, and rows spread over a data axis meet along that axis.

    Args:
      rows_fn: ``(params, batch) -> rows``, a pytree shaped like the parameters with a
        leading axis of independent rows: :func:`fgo_jax.probes.example_gradients`, or any
        of yours, such as the gradients of micro-batches or of each device. One that
        requires a keyword ``key`` gets a fresh one for each measurement.
      every: measured at the steps ``every, 2 * every, ...``.
      examples: leading examples of ``batch`` that ``rows_fn`` gets; None for an eighth.
      batch_size: the size that ``batch`` is declared to have; None takes any.
      centred: whether to measure the covariance (5 rows or more) or, from rows of single
        examples, the empirical Fisher (3 or more).
      row_size: the number of examples that a row is the mean of; the numbers are those of
        one example's gradient whatever it is.
      energy: share of the trace that the energy rank holds, in [0, 1).
      smoothing: weight of the old average in the new one, in [0, 1).
      groups: parts of the tree to measure apart, from
        :func:`fgo_jax.probes.layer_groups`. They give ``intrinsic_dimension/NAME``,
        ``trace/NAME`` and ``noise_scale/NAME`` for another :math:`8 n^3` bytes each.

    Raises:
      ValueError: for numbers out of range, and when traced for a ``batch``, rows or groups
        that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> def loss(params, example):
      ...     return jnp.vdot(params, example)  # its gradient is the example
      >>> probe = fgo.probes.gram(fgo.probes.example_gradients(loss), examples=256)
      >>> batch = jax.random.normal(jax.random.key(0), (256, 10))
      >>> params = jnp.zeros(10)
      >>> inputs = fgo.probes.ProbeInputs(
      ...     None, None, params, batch, jax.random.key(1), jnp.int32(200)
      ... )
      >>> read = probe.read(probe.measure(inputs, probe.init(params)))
      >>> bool(abs(read["intrinsic_dimension"].value - 10) < 1)
      True

    Source: Chun et al. (ICLR 2026), on the bias of the participation ratio; McCandlish et
    al. (2018), "An empirical model of large-batch training", appendix A.
    """
    _checks.integer("every", every)
    _checks.fraction("energy", energy)
    _checks.fraction("smoothing", smoothing)
    _checks.positive_int("row_size", row_size)
    if not centred and row_size != 1:
        raise ValueError(
            "the empirical Fisher needs rows of single examples, a mean over several has "
            f"another second moment: pass row_size=1 or centred=True, got row_size={row_size}."
        )
    names = check_groups(groups)
    minimum = 5 if centred else 3
    check_examples(examples, batch_size, minimum=minimum)
    count = functools.partial(
        example_count, examples=examples, batch_size=batch_size, minimum=minimum
    )

    def check(inputs: ProbeInputs) -> None:
        count(inputs.batch)

    return Probe(
        signals=SIGNALS + tuple(f"{signal}/{name}" for name in names for signal in GROUP_SIGNALS),
        init=lambda params: _init(1 + len(names)),
        due=lambda state, step: is_due(step, every),
        measure=functools.partial(
            _measure,
            rows_fn=rows_fn,
            count=count,
            centred=centred,
            energy=energy,
            smoothing=smoothing,
            groups=groups,
        ),
        read=functools.partial(_read, names=names, row_size=row_size, centred=centred),
        requires=("params", "batch"),
        check=check,
    )


def _init(slot_count: int) -> GramState:
    return GramState(
        evaluations=jnp.zeros([], jnp.int32),
        held=jnp.zeros([], jnp.int32),
        unit=jnp.zeros([], jnp.float32),
        moments=jnp.zeros([slot_count, 4], jnp.float32),
        covariance=jnp.zeros([slot_count, 4, 4], jnp.float32),
        eigen=jnp.zeros([3], jnp.float32),
        eigen_variance=jnp.zeros([3], jnp.float32),
        weight=jnp.zeros([], jnp.float32),
        ratios=jnp.full([slot_count, 2, 2], jnp.nan, jnp.float32),
        rank_ceiling=jnp.full([], jnp.inf, jnp.float32),
    )


def _measure(
    inputs: ProbeInputs,
    state: GramState,
    *,
    rows_fn: RowsFn,
    count: Callable[[Any], int],
    centred: bool,
    energy: Any,
    smoothing: Any,
    groups: Groups | None,
) -> GramState:
    examples = count(inputs.batch)
    batch = jax.tree.map(lambda leaf: leaf[:examples], inputs.batch)
    rows = bind(rows_fn, inputs.params, batch, inputs.key)
    n = row_count(rows, 5 if centred else 3)
    leaves = [leaf_gram(leaf) for leaf in jax.tree.leaves(rows)]
    empty = jnp.zeros([n, n], jnp.float32)
    grams = [sum((leaves[i] for i in those), empty) for those in slots(groups, rows)]

    trace = _moments(grams[0], centred)[2]
    unit = jnp.where(state.unit > 0.0, state.unit, trace)
    grams = jnp.stack(grams) / jnp.where(unit > 0.0, unit, jnp.nan)
    moments = jax.vmap(functools.partial(_moments, centred=centred))(grams)
    covariance = jax.vmap(functools.partial(_jackknife, centred=centred))(grams)

    freedom = n - 1 if centred else n
    size = sum(leaf.size // n for leaf in jax.tree.leaves(rows))
    read = row_spectrum(sums.centre(grams[0]) if centred else grams[0], freedom, energy)
    rank, influence = read.energy_rank, read.rank_influence
    influences = jnp.stack([read.top_influence, influence, influence / freedom])
    eigen = jnp.stack([read.top_eigenvalue, rank, rank / freedom])
    return _accumulate(
        state._replace(rank_ceiling=white_noise_rank(freedom, size, energy)),
        unit,
        (moments, covariance, eigen, jnp.var(influences, axis=1, ddof=1) / n),
        smoothing,
    )


def _moments(gram: jax.Array, centred: bool) -> jax.Array:
    """Unbiased (tr C)^2, tr C^2, tr of the covariance, |E g|^2; with F for C if uncentred."""
    n = gram.shape[0]
    numerator, denominator = (sums.centred_sums if centred else sums.uncentred_sums)(gram)
    covariance = jnp.trace(sums.centre(gram)) / (n - 1)
    signal = jnp.mean(gram) - covariance / n
    return jnp.stack([numerator, denominator, covariance, signal])


def _jackknife(gram: jax.Array, centred: bool) -> jax.Array:
    """[4, 4], covariance of the moments, from leaving out each row in turn."""
    n = gram.shape[0]
    kept = jnp.arange(n - 1)

    def without(row: jax.Array) -> jax.Array:
        index = kept + (kept >= row).astype(kept.dtype)
        return _moments(gram[index][:, index], centred)

    gaps = jax.vmap(without)(jnp.arange(n))
    gaps = gaps - jnp.mean(gaps, axis=0, keepdims=True)
    return (n - 1) / n * jnp.matmul(gaps.T, gaps, precision=jax.lax.Precision.HIGHEST)


def _accumulate(
    state: GramState, unit: jax.Array, drawn: tuple[jax.Array, ...], smoothing: Any
) -> GramState:
    keep = jnp.asarray(smoothing, jnp.float32)
    add = 1.0 - keep
    moments, covariance, eigen, eigen_variance = drawn
    finite = jnp.all(jnp.asarray([jnp.all(jnp.isfinite(item)) for item in drawn[:3]]))
    new = state._replace(
        evaluations=optax.safe_increment(state.evaluations),
        unit=unit,
        moments=keep * state.moments + add * moments,
        # Measurements have rows of their own: variances add, by squares.
        covariance=jnp.square(keep) * state.covariance + jnp.square(add) * covariance,
        eigen=keep * state.eigen + add * eigen,
        eigen_variance=jnp.square(keep) * state.eigen_variance + jnp.square(add) * eigen_variance,
        weight=keep * state.weight + add,
    )
    dimension = _ratio(new.moments, new.covariance, 0, 1)
    noise = _ratio(new.moments, new.covariance, 2, 3)
    good = ~jnp.isnan(dimension[0, 0])
    last, last_noise = state.ratios[:, 0], state.ratios[:, 1].at[:, 1].set(jnp.inf)
    dimension = jnp.where(jnp.isnan(dimension), last, dimension)
    # A mean gradient that is not told from zero: the noise scale may be anything.
    noise = jnp.where(jnp.isnan(noise), last_noise, noise)
    new = new._replace(ratios=jnp.stack([dimension, noise], axis=1))
    new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
    return new._replace(held=jnp.where(finite & good, state.held, optax.safe_increment(state.held)))


def _ratio(moments: jax.Array, covariance: jax.Array, top: int, bottom: int) -> jax.Array:
    """[slots, 2]: a ratio of two moments and its first-order error; NaN: not positive."""
    a, b = moments[:, top], moments[:, bottom]
    good = (a > 0.0) & (b > 0.0)
    a, b = jnp.where(good, a, 1.0), jnp.where(good, b, 1.0)
    variance = (
        covariance[:, top, top] / jnp.square(a)
        + covariance[:, bottom, bottom] / jnp.square(b)
        - 2.0 * covariance[:, top, bottom] / (a * b)
    )
    ratio = a / b
    error = ratio * jnp.sqrt(jnp.maximum(variance, 0.0))
    return jnp.where(good[:, None], jnp.stack([ratio, error], axis=1), jnp.nan)


def _read(
    state: GramState, *, names: tuple[str, ...], row_size: int, centred: bool
) -> dict[str, Estimate]:
    weight = jnp.where(state.weight > 0.0, state.weight, jnp.nan)
    eigen = state.eigen / weight
    eigen_error = jnp.sqrt(state.eigen_variance) / weight
    rank_error, fraction_error = trusted_error(eigen[1], eigen_error[1:], state.rank_ceiling)
    scale = row_size * state.unit
    # The second moment of the uncentred rows is their covariance and their mean's square.
    parts = jnp.array([0.0, 0.0, 1.0, 0.0 if centred else 1.0])
    estimates = {
        "top_eigenvalue": Estimate(scale * eigen[0], scale * eigen_error[0]),
        "energy_rank": Estimate(eigen[1], rank_error),
        "energy_fraction": Estimate(eigen[2], fraction_error),
    }
    for index, name in enumerate(("", *(f"/{name}" for name in names))):
        dimension, noise = state.ratios[index]
        trace = jnp.sum(parts * state.moments[index]) / weight
        variance = jnp.sum(parts[:, None] * state.covariance[index] * parts[None, :])
        error = jnp.sqrt(jnp.maximum(variance, 0.0)) / weight
        estimates[f"intrinsic_dimension{name}"] = Estimate(dimension[0], dimension[1])
        estimates[f"trace{name}"] = Estimate(scale * trace, scale * error)
        estimates[f"noise_scale{name}"] = Estimate(row_size * noise[0], row_size * noise[1])
    return estimates
