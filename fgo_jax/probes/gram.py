"""The covariance of single-example gradients, or the empirical Fisher, at fixed parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.linalg import mesh, sums
from fgo_jax.linalg.operator import bind, check_examples, example_count, is_due
from fgo_jax.linalg.rows import row_spectrum, white_noise_rank
from fgo_jax.linalg.trees import real32
from fgo_jax.probes import gram_averages as averages
from fgo_jax.probes.example_rows import RowsFn, leaf_gram, row_count
from fgo_jax.probes.groups import Groups, check_groups, counter, slots
from fgo_jax.probes.probe import Probe, ProbeInputs

SIGNALS = (
    "intrinsic_dimension",
    "trace",
    "noise_scale",
    "top_eigenvalue",
    "energy_rank",
    "energy_fraction",
)
GROUP_SIGNALS = ("intrinsic_dimension", "trace", "noise_scale")


def gram(
    rows_fn: RowsFn,
    every: int = 200,
    *,
    examples: int | None = None,
    batch_size: int | None = None,
    centred: bool = True,
    row_size: int = 1,
    energy: float = 0.9,
    smoothing: float = 0.5,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the covariance of gradients from the inner products of n of them.

    The rows :math:`g_1 \dots g_n`, such as gradients of single examples, are taken at the
    same parameters. Only their Gram matrix :math:`K_{ij} = \langle g_i, g_j \rangle` is used.
    C is the covariance of one example's gradient. The signals are:

    - ``intrinsic_dimension``: :math:`(\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2`, the ratio of two
      unbiased sums (:func:`fgo_jax.linalg.centred_sums`). It can exceed n, unlike the
      participation ratio of the sample covariance.
    - ``trace`` of C, unbiased, in the unit of the gradient squared.
    - ``noise_scale``: :math:`\mathrm{tr}\,C / |E g|^2`, in examples: the batch size at which
      the noise of the mean gradient equals its size.
    - ``top_eigenvalue`` of the rows' covariance, in the unit of the gradient squared. With few
      rows it is too large: an eigenvalue :math:`\lambda` of white noise by :math:`\mathrm{tr}\,C
      / n + 2 \sqrt{\lambda\,\mathrm{tr}\,C / n}`, one far above all others by 1/n of their sum.
    - ``energy_rank``: how many of its eigenvalues hold ``energy`` of its trace;
      ``energy_fraction`` divides it by n - 1, the most that n rows can show. Few rows make
      it too small. A rank near what white noise would read says only that the rows are too
      few: its error is then infinite, so no trigger acts on it.

    With ``centred=False`` the empirical Fisher :math:`E gg^T` takes the place of C, except
    in the noise scale.

    Numerators and denominators are averaged over measurements (exponentially, debiased) and
    divided once. Unusable measurements are handled like this:

    | case | effect |
    |---|---|
    | a sum of the dimension is not positive | the last dimension stays, counted in ``held`` |
    | the measurement is not finite | nothing changes but ``held`` |
    | the noise scale has no positive denominator | the last one stays, its error is infinite |

    Errors are jackknife standard errors over the rows. The squared error of the trace is too
    large on average. The error of the dimension, a ratio, can be too small: by a tenth at 16 rows
    and eigenvalues :math:`1/k^2`.

    A measurement costs one run of ``rows_fn`` (about one gradient of its examples) and
    :math:`n^2` products per parameter. It takes memory for n gradients, those of one leaf
    twice, and :math:`8 n^3` bytes. Rows are never flattened: leaves sharded over a model axis
    are reduced in place, and rows spread over a data axis are gathered along that axis.

    Args:
      rows_fn: ``(params, batch) -> rows``, a pytree shaped like the parameters with a
        leading axis of n independent rows. :func:`fgo_jax.probes.example_gradients` makes
        it from a loss; rows may also be gradients of micro-batches or of each device. If it
        requires a keyword ``key``, each measurement passes a fresh one.
      every: steps between measurements, which are at ``every, 2 * every, ...``.
      examples: how many leading examples of ``batch`` to read; None for an eighth.
        Under the ``axis_name`` of :func:`fgo_jax.phased`, of each device's part.
      batch_size: the declared size of ``batch``; None for any.
      centred: whether to measure the covariance (at least 5 rows) or the empirical Fisher
        (at least 3 rows, each of a single example).
      row_size: how many examples a row averages. The signals are those of one example's
        gradient for any ``row_size``.
      energy: share of the trace that the energy rank holds, in (0, 1].
      smoothing: weight of the old average in the new one, in [0, 1).
      groups: parts of the tree to measure separately, from
        :func:`fgo_jax.probes.layer_groups`. They add ``intrinsic_dimension/NAME``,
        ``trace/NAME`` and ``noise_scale/NAME``, for another :math:`8 n^3` bytes each.

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires ``params`` and ``batch=`` of the update.

    Raises:
      ValueError: for numbers out of range; when traced, for a ``batch``, rows or groups that
        do not fit.

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
      >>> read = probe.read(jax.jit(probe.measure)(inputs, probe.init(params)))
      >>> bool(abs(read["intrinsic_dimension"].value - 10) < 1)
      True

    Source: Chun et al. (ICLR 2026), on the bias of the participation ratio; McCandlish et
    al. (2018), "An empirical model of large-batch training", appendix A.
    """
    _checks.function("rows_fn", rows_fn, "(params, batch) -> rows")
    _checks.integer("every", every)
    _checks.share("energy", energy)
    _checks.fraction("smoothing", smoothing)
    _checks.positive_int("row_size", row_size)
    if not centred and row_size != 1:
        raise ValueError(
            "the empirical Fisher needs rows of single examples, because a mean over several has "
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
        init=lambda params: averages.init(1 + len(names)),
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
        read=functools.partial(averages.read, names=names, row_size=row_size, centred=centred),
        requires=("params", "batch"),
        counter=functools.partial(counter, names=names),
        check=check,
    )


def _measure(
    inputs: ProbeInputs,
    state: averages.GramState,
    *,
    rows_fn: RowsFn,
    count: Callable[[Any], int],
    centred: bool,
    energy: Any,
    smoothing: Any,
    groups: Groups | None,
) -> averages.GramState:
    examples = count(inputs.batch)
    batch = mesh.examples(inputs.batch, 0, examples)
    axis_name = inputs.axis_name
    rows = bind(rows_fn, inputs.params, batch, inputs.key, axis_name=axis_name)
    n = row_count(rows, 5 if centred else 3)
    # Complex rows have the inner products of their two parts.
    rows = jax.tree.map(lambda x: jax.vmap(real32)(x) if jnp.iscomplexobj(x) else x, rows)
    size = sum(leaf.size // n for leaf in jax.tree.leaves(rows))
    n *= 1 if axis_name is None else jax.lax.axis_size(axis_name)
    leaves = [leaf_gram(leaf, axis_name) for leaf in jax.tree.leaves(rows)]
    empty = jnp.zeros([n + 1, n + 1], jnp.float32)
    grams = [sum((leaves[i] for i in those), empty) for those in slots(groups, rows)]

    grams = jnp.stack(grams)
    state = averages.in_unit_of(state, jax.vmap(lambda gram: _moments(gram, centred)[2])(grams))
    # Without any gradient there is nothing to measure; without one in a group its parts are zero.
    unit = jnp.where(state.unit > 0.0, state.unit, jnp.where(state.unit[0] > 0.0, 1.0, jnp.nan))
    grams = grams / unit[:, None, None]
    moments = jax.vmap(functools.partial(_moments, centred=centred))(grams)
    covariance = jax.vmap(functools.partial(_jackknife, centred=centred))(grams)

    freedom = n - 1 if centred else n
    products = sums.centre(grams[0, :-1, :-1]) if centred else _uncentred(grams[0])
    read = row_spectrum(products, freedom, energy)
    rank, influence = read.energy_rank, read.rank_influence
    influences = jnp.stack([read.top_influence, influence, influence / freedom])
    eigen = jnp.stack([read.top_eigenvalue, rank, rank / freedom])
    return averages.accumulate(
        state._replace(rank_ceiling=white_noise_rank(freedom, size, energy)),
        (moments, covariance, eigen, jnp.var(influences, axis=1, ddof=1) / n),
        smoothing,
    )


def _uncentred(gram: jax.Array) -> jax.Array:
    """[n, n]; the inner products of n rows, from those of `leaf_gram`."""
    cross = gram[:-1, -1:]
    return gram[:-1, :-1] + (cross + cross.T) + gram[-1:, -1:]


def _moments(gram: jax.Array, centred: bool) -> jax.Array:
    """Unbiased (tr C)^2, tr C^2, tr Cov g and |E g|^2; C is E gg^T if not centred."""
    rows, whole = gram[:-1, :-1], _uncentred(gram)
    n = rows.shape[0]
    numerator, denominator = sums.centred_sums(rows) if centred else sums.uncentred_sums(whole)
    covariance = jnp.trace(sums.centre(rows)) / (n - 1)
    signal = jnp.mean(whole) - covariance / n
    return jnp.stack([numerator, denominator, covariance, signal])


def _jackknife(gram: jax.Array, centred: bool) -> jax.Array:
    """[4, 4]; covariance of the moments, from leaving out one row at a time."""
    n = gram.shape[0] - 1
    kept = jnp.arange(n)  # the last one, the mean row, is always kept

    def without(row: jax.Array) -> jax.Array:
        index = kept + (kept >= row).astype(kept.dtype)
        return _moments(gram[index][:, index], centred)

    gaps = jax.vmap(without)(jnp.arange(n))
    gaps = gaps - jnp.mean(gaps, axis=0, keepdims=True)
    return (n - 1) / n * jnp.matmul(gaps.T, gaps, precision=jax.lax.Precision.HIGHEST)
