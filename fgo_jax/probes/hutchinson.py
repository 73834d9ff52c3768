"""Trace, trace of the square and dimension of a curvature operator from random probes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.probes.operator import Operator, check_examples, example_count, is_due, vdot
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

SIGNALS = ("trace", "trace_square", "intrinsic_dimension")


class HutchinsonState(NamedTuple):
    """Averages over the measurements so far; the three moments are those of `_moments`."""

    evaluations: jax.Array  # [], int32; measurements that entered the averages
    held: jax.Array  # [], int32; measurements that gave no new dimension
    moments: jax.Array  # [3], float32; weighted sums
    covariance: jax.Array  # [3, 3], float32; of these sums, over the probe vectors
    weight: jax.Array  # [], float32; sum of the weights
    dimension: jax.Array  # [2], float32; the last good ratio and its standard error


def hutchinson(
    operator: Operator,
    num_samples: int = 4,
    every: int = 200,
    examples: int | None = None,
    batch_size: int | None = None,
    smoothing: float = 0.5,
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

    Signals: ``trace`` (in the unit of the loss over parameters squared), ``trace_square``
    (that squared), ``intrinsic_dimension`` (a number), each with a standard error over
    the vectors (delta method for the ratio). It does not hold the noise of the choice of
    examples, which only the spread of several measurements shows.

    A measurement costs ``2 * num_samples`` products on half of the examples, one at a
    time, and the memory of three pytrees shaped like the parameters.

    Args:
      operator: ``(params, batch) -> matvec``, as :func:`fgo_jax.curvature.ggn` returns;
        symmetric, and an average over the examples of its batch.
      num_samples: sign vectors m of a measurement, at least 2.
      every: measured at the steps ``every, 2 * every, ...``.
      examples: leading examples of ``batch`` that are read, an even number; None for an
        eighth of the batch, at least 2.
      batch_size: the size that ``batch`` is declared to have; None takes any.
      smoothing: weight of the old average in the new one, in [0, 1).

    Raises:
      ValueError: for sizes that are no such integers, and when traced for a ``batch`` that
        does not fit them.

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
    matrix"; Chun et al. (ICLR 2026) on the bias that the two halves remove.
    """
    _checks.positive_int("num_samples", num_samples, 2)
    _checks.integer("every", every)
    _checks.fraction("smoothing", smoothing)
    count = functools.partial(
        example_count, examples=examples, batch_size=batch_size, minimum=2, multiple=2
    )
    check_examples(examples, batch_size, minimum=2, multiple=2)

    def check(inputs: ProbeInputs) -> None:
        count(inputs.batch)

    return Probe(
        signals=SIGNALS,
        init=_init,
        due=lambda state, step: is_due(step, every),
        measure=functools.partial(
            _measure, operator=operator, count=count, num_samples=num_samples, smoothing=smoothing
        ),
        read=_read,
        requires=("params", "batch"),
        check=check,
    )


def _init(params: Any) -> HutchinsonState:
    del params
    return HutchinsonState(
        evaluations=jnp.zeros([], jnp.int32),
        held=jnp.zeros([], jnp.int32),
        moments=jnp.zeros([3], jnp.float32),
        covariance=jnp.zeros([3, 3], jnp.float32),
        weight=jnp.zeros([], jnp.float32),
        dimension=jnp.full([2], jnp.nan, jnp.float32),
    )


def _measure(
    inputs: ProbeInputs,
    state: HutchinsonState,
    *,
    operator: Operator,
    count: Callable[[Any], int],
    num_samples: int,
    smoothing: Any,
) -> HutchinsonState:
    half = count(inputs.batch) // 2
    first = operator(inputs.params, jax.tree.map(lambda leaf: leaf[:half], inputs.batch))
    second = operator(inputs.params, jax.tree.map(lambda leaf: leaf[half : 2 * half], inputs.batch))

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        signs = optax.tree.random_like(key, inputs.params, jax.random.rademacher, jnp.float32)
        a = optax.tree.cast(first(signs), jnp.float32)
        b = optax.tree.cast(second(signs), jnp.float32)
        return vdot(signs, a), vdot(signs, b), vdot(a, b)

    # One vector after the other: m of them at once would be m times the memory.
    samples = jax.lax.map(sample, jax.random.split(inputs.key, num_samples))
    moments, covariance = _moments(*samples)
    return _accumulate(state, moments, covariance, smoothing)


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
    _, square, denominator = new.moments / new.weight
    good = (square > 0.0) & (denominator > 0.0)
    square, denominator = jnp.where(good, square, 1.0), jnp.where(good, denominator, 1.0)
    ratio = square / denominator
    # Relative error of a ratio N / D: the variance of dN / N - dD / D.
    slope = jnp.stack([jnp.float32(0.0), 1.0 / square, -1.0 / denominator]) / new.weight
    variance = jnp.sum(slope[:, None] * new.covariance * slope[None, :])
    error = ratio * jnp.sqrt(jnp.maximum(variance, 0.0))
    new = new._replace(dimension=jnp.where(good, jnp.stack([ratio, error]), state.dimension))
    new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
    return new._replace(held=jnp.where(finite & good, state.held, optax.safe_increment(state.held)))


def _read(state: HutchinsonState) -> dict[str, Estimate]:
    weight = jnp.where(state.weight > 0.0, state.weight, jnp.nan)
    means = state.moments / weight
    errors = jnp.sqrt(jnp.diagonal(state.covariance)) / weight
    return {
        "trace": Estimate(means[0], errors[0]),
        "trace_square": Estimate(means[2], errors[2]),
        "intrinsic_dimension": Estimate(state.dimension[0], state.dimension[1]),
    }
