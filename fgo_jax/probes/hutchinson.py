"""Trace, trace of the square and dimension of a curvature operator from random probes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.krylov import combination, krylov_space, random_block
from fgo_jax.linalg.operator import (
    Operator,
    bind,
    check_examples,
    example_count,
    is_due,
    random_signs,
    student_width,
)
from fgo_jax.linalg.trees import vdot
from fgo_jax.probes.groups import Groups, check_groups, slots
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

SIGNALS = ("trace", "trace_square", "intrinsic_dimension")


class HutchinsonState(NamedTuple):
    """Averages over the measurements so far, of the whole operator and then of each group.

    The three moments are those of `_moments`.
    """

    evaluations: jax.Array  # [], int32; measurements that entered the averages
    held: jax.Array  # [], int32; measurements that gave no new dimension
    moments: jax.Array  # [1 + groups, 3], float32; weighted sums
    covariance: jax.Array  # [1 + groups, 3, 3], float32; of these sums, over probe vectors
    weight: jax.Array  # [], float32; sum of the weights
    dimension: jax.Array  # [1 + groups, 2], float32; last good ratio and its standard error


def hutchinson(
    operator: Operator,
    num_samples: int = 4,
    every: int = 200,
    examples: int | None = None,
    batch_size: int | None = None,
    smoothing: float = 0.5,
    deflate: int = 0,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the dimension of a curvature operator with Rademacher vectors.

    The probe's examples are cut into two halves with operators :math:`F_1, F_2`, each
    unbiased for the F of the whole distribution. With m random sign vectors z and
    :math:`x_i = z_i^T F_1 z_i`, :math:`y_i = z_i^T F_2 z_i`, over vectors and examples:

    .. math:: \mathrm{tr}\,F &\approx \tfrac{1}{2m} \textstyle\sum_i (x_i + y_i) \\
              (\mathrm{tr}\,F)^2 &\approx \tfrac{1}{m(m-1)} \textstyle\sum_{i \ne j} x_i y_j \\
              \mathrm{tr}\,F^2 &\approx \tfrac{1}{m} \textstyle\sum_i
                \langle F_1 z_i, F_2 z_i \rangle

    All three are unbiased: the square of the trace takes products of different vectors
    and different halves only, and one operator's own square, which adds its sampling
    noise to the spectrum, is nowhere in them. Each is averaged over measurements
    (exponentially, debiased), and the dimension is one ratio of averages. A ratio whose
    terms are not both positive is not a dimension: the last one is held and counted in
    ``held``, as is a measurement that is not finite, which changes nothing else.

    A few outliers dominate the variance of all three. ``deflate`` = k takes the top k Ritz
    vectors Q of :math:`(F_1 + F_2) / 2`, adds :math:`\mathrm{tr}\,Q F Q^T` and
    :math:`\mathrm{tr}\,Q F_1 F_2 Q^T` exactly and projects z off them. Every Q leaves the
    estimates unbiased; a good one leaves them the noise of the bulk only.

    Signals: ``trace`` (in the unit of the loss over parameters squared), ``trace_square``
    (that squared), ``intrinsic_dimension`` (a number), each with a standard error over
    the vectors (delta method for the ratio), widened to Student's t and, for the square,
    to its log scale: 1.96 of it cover the truth in nine cases of ten with four vectors and
    one outlier. It does not hold the noise of the choice of examples, which only the
    spread of several measurements shows.
    With ``groups``, the same signals as ``trace/NAME`` etc., of the group's diagonal block.

    A measurement costs ``2 * num_samples`` products on half of the examples, one at a
    time, and the memory of three pytrees shaped like the parameters; as many products
    again for each group; and with ``deflate`` another ``6 * deflate + 8`` products and
    ``12 * deflate + 20`` bytes per parameter.

    Args:
      operator: ``(params, batch) -> matvec``, as :func:`fgo_jax.curvature.ggn` returns;
        symmetric, and an average over the examples of its batch. One that requires a
        keyword ``key``, as :func:`fgo_jax.curvature.sampled_fisher`, gets a fresh one for
        each half of each measurement.
      num_samples: sign vectors m of a measurement, at least 2.
      every: measured at the steps ``every, 2 * every, ...``.
      examples: leading examples of ``batch`` that are read, an even number; None for an
        eighth of the batch, at least 2.
      batch_size: the size that ``batch`` is declared to have; None takes any.
      smoothing: weight of the old average in the new one, in [0, 1).
      deflate: Ritz vectors k that are taken exactly, fewer than there are parameters.
      groups: parts of the tree to measure apart, from
        :func:`fgo_jax.probes.layer_groups`; not together with ``deflate``.

    Raises:
      ValueError: for sizes that are no such integers, and when traced for a ``batch`` or
        groups that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fgo_jax.curvature import ggn
      >>> from fgo_jax.probes.probe import ProbeInputs
      >>> linear = lambda params, batch: batch["x"] @ params
      >>> probe = hutchinson(ggn(linear, "squared_error"), num_samples=8, examples=64)
      >>> params = jnp.zeros((5, 1))
      >>> batch = {"x": jax.random.normal(jax.random.key(0), (64, 5))}
      >>> inputs = ProbeInputs(None, None, params, batch, jax.random.key(1), jnp.int32(200))
      >>> read = probe.read(probe.measure(inputs, probe.init(params)))
      >>> bool(abs(read["trace"].value - 5.0) < 1.0)  # the identity, from 64 examples
      True

    Source: Hutchinson (1989), "A stochastic estimator of the trace of the influence
    matrix"; Meyer et al. (2021), "Hutch++", on deflation; Chun et al. (ICLR 2026) on the
    bias that the two halves remove.
    """
    _checks.positive_int("num_samples", num_samples, 2)
    _checks.integer("every", every)
    _checks.fraction("smoothing", smoothing)
    _checks.positive_int("deflate", deflate, 0)
    names = check_groups(groups)
    if deflate and names:
        raise ValueError(
            "deflate= takes eigenvectors of the whole operator and cannot serve its blocks: "
            "pass deflate=0 with groups=, or use two probes."
        )
    count = functools.partial(
        example_count, examples=examples, batch_size=batch_size, minimum=2, multiple=2
    )
    check_examples(examples, batch_size, minimum=2, multiple=2)

    def check(inputs: ProbeInputs) -> None:
        count(inputs.batch)

    return Probe(
        signals=SIGNALS + tuple(f"{signal}/{name}" for name in names for signal in SIGNALS),
        init=lambda params: _init(1 + len(names)),
        due=lambda state, step: is_due(step, every),
        measure=functools.partial(
            _measure,
            operator=operator,
            count=count,
            num_samples=num_samples,
            smoothing=smoothing,
            deflate=deflate,
            groups=groups,
        ),
        read=functools.partial(_read, names=names),
        requires=("params", "batch"),
        check=check,
    )


def _init(slot_count: int) -> HutchinsonState:
    return HutchinsonState(
        evaluations=jnp.zeros([], jnp.int32),
        held=jnp.zeros([], jnp.int32),
        moments=jnp.zeros([slot_count, 3], jnp.float32),
        covariance=jnp.zeros([slot_count, 3, 3], jnp.float32),
        weight=jnp.zeros([], jnp.float32),
        dimension=jnp.full([slot_count, 2], jnp.nan, jnp.float32),
    )


def _measure(
    inputs: ProbeInputs,
    state: HutchinsonState,
    *,
    operator: Operator,
    count: Callable[[Any], int],
    num_samples: int,
    smoothing: Any,
    deflate: int,
    groups: Groups | None,
) -> HutchinsonState:
    params = inputs.params
    half = count(inputs.batch) // 2
    halves = (slice(0, half), slice(half, 2 * half))
    first, second = (
        bind(operator, params, jax.tree.map(lambda x, i=i: x[i], inputs.batch), inputs.key, part)
        for part, i in enumerate(halves)
    )
    members = slots(groups, params)
    # Not fold_in(key, 1) for the start: that is split(key)[1], the key of a sign vector,
    # and a subspace that knows the signs it is projected off is biased.
    *keys, start_key = jax.random.split(inputs.key, num_samples + 1)
    exact = jnp.zeros([3], jnp.float32)
    top = None
    if deflate:
        top = _top_subspace(first, second, params, start_key, deflate)
        parts = jax.lax.map(lambda vector: _forms(first, second, vector), top)
        exact = jnp.sum(jnp.stack(parts), axis=1)

    def sample(job: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        key, chosen = job
        signs = random_signs(key, params)
        within = jax.tree.unflatten(jax.tree.structure(signs), list(chosen))
        if groups is not None:
            signs = jax.tree.map(lambda on, leaf: on * leaf, within, signs)
        if top is not None:
            heights = jax.lax.map(lambda vector: vdot(vector, signs), top)
            signs = optax.tree.sub(signs, combination(heights, top))
        return _forms(first, second, signs, None if groups is None else within)

    leaf_count = len(jax.tree.leaves(params))
    masks = jnp.asarray([[float(i in those) for i in range(leaf_count)] for those in members])
    jobs = (jnp.tile(jnp.stack(keys), len(members)), jnp.repeat(masks, num_samples, axis=0))
    # One vector after the other: m of them at once would be m times the memory.
    samples = [
        drawn.reshape(len(members), num_samples) + term
        for drawn, term in zip(jax.lax.map(sample, jobs), exact, strict=True)
    ]
    return _accumulate(state, *jax.vmap(_moments)(*samples), smoothing)


def _top_subspace(
    first: Callable[[Any], Any], second: Callable[[Any], Any], params: Any, key: Any, size: int
) -> Any:
    """Leaves [size, *leaf.shape]: orthonormal Ritz vectors of the two halves' mean."""

    def mean(vector: Any) -> Any:
        total = optax.tree.add(first(vector), second(vector))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / 2, total)

    space = krylov_space(mean, random_block(key, params, 1), 2 * size + 4)
    _, vectors = jnp.linalg.eigh(space.matrix)
    return combination(jnp.flip(vectors, 1)[:, :size].T, space.basis)


def _forms(
    first: Callable[[Any], Any], second: Callable[[Any], Any], vector: Any, within: Any = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """z^T F_1 z, z^T F_2 z and <F_1 z, F_2 z>, of which the last is summed `within` leaves."""
    a = optax.tree.cast(first(vector), jnp.float32)
    b = optax.tree.cast(second(vector), jnp.float32)
    c = a if within is None else jax.tree.map(lambda on, leaf: on * leaf, within, a)
    return vdot(vector, a), vdot(vector, b), vdot(c, b)


def _moments(x: jax.Array, y: jax.Array, xy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Unbiased [tr F, (tr F)^2, tr F^2], and their covariance over the vectors."""
    m = x.shape[0]
    trace = (x + y) / 2
    square = (jnp.sum(x) * jnp.sum(y) - jnp.sum(x * y)) / (m * (m - 1))
    # First-order influence of one vector: that of the square is 2 tr F times the trace's.
    influence = jnp.stack([trace, 2 * jnp.mean(trace) * trace, xy])
    influence = influence - jnp.mean(influence, axis=1, keepdims=True)
    covariance = jnp.tensordot(
        influence, influence, axes=(1, 1), precision=jax.lax.Precision.HIGHEST
    ) / (m * (m - 1))
    covariance = student_width(m - 1) ** 2 * covariance
    return jnp.stack([jnp.mean(trace), square, jnp.mean(xy)]), covariance


def _accumulate(
    state: HutchinsonState, moments: jax.Array, covariance: jax.Array, smoothing: Any
) -> HutchinsonState:
    keep = jnp.asarray(smoothing, jnp.float32)
    add = 1.0 - keep
    finite = jnp.all(jnp.isfinite(moments)) & jnp.all(jnp.isfinite(covariance))
    new = state._replace(
        evaluations=optax.safe_increment(state.evaluations),
        moments=keep * state.moments + add * moments,
        # Vectors of different measurements are independent: variances add, by squares.
        covariance=jnp.square(keep) * state.covariance + jnp.square(add) * covariance,
        weight=keep * state.weight + add,
    )
    dimension = jax.vmap(_dimension)(new.moments / new.weight, new.covariance / new.weight**2)
    good = ~jnp.isnan(dimension[0, 0])
    new = new._replace(dimension=jnp.where(jnp.isnan(dimension), state.dimension, dimension))
    new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
    return new._replace(held=jnp.where(finite & good, state.held, optax.safe_increment(state.held)))


def _dimension(moments: jax.Array, covariance: jax.Array) -> jax.Array:
    """[2]: the ratio of two moments and its error; NaN where they are not both positive."""
    _, square, denominator = moments
    good = (square > 0.0) & (denominator > 0.0)
    square, denominator = jnp.where(good, square, 1.0), jnp.where(good, denominator, 1.0)
    ratio = square / denominator
    # Relative error of a ratio N / D: the variance of dN / N - dD / D.
    slope = jnp.stack([jnp.float32(0.0), 1.0 / square, -1.0 / denominator])
    variance = jnp.sum(slope[:, None] * covariance * slope[None, :])
    error = ratio * jnp.sqrt(jnp.maximum(variance, 0.0))
    return jnp.where(good, jnp.stack([ratio, error]), jnp.nan)


def _skewed(mean: jax.Array, error: jax.Array) -> jax.Array:
    """The upper, wider half of an interval on a log scale.

    A mean of few squares is skewed, and where it comes out low its spread does too.
    """
    relative = jnp.minimum(1.96 * error / jnp.maximum(jnp.abs(mean), 1e-30), 20.0)
    return error * jnp.where(relative > 1e-3, jnp.expm1(relative) / relative, 1.0)


def _read(state: HutchinsonState, *, names: tuple[str, ...]) -> dict[str, Estimate]:
    weight = jnp.where(state.weight > 0.0, state.weight, jnp.nan)
    estimates = {}
    for index, suffix in enumerate(("", *(f"/{name}" for name in names))):
        means = state.moments[index] / weight
        errors = jnp.sqrt(jnp.diagonal(state.covariance[index])) / weight
        estimates[f"trace{suffix}"] = Estimate(means[0], errors[0])
        estimates[f"trace_square{suffix}"] = Estimate(means[2], _skewed(means[2], errors[2]))
        estimates[f"intrinsic_dimension{suffix}"] = Estimate(*state.dimension[index])
    return estimates
