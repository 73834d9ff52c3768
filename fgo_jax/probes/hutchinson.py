"""Trace, trace of the square and dimension of a curvature operator from random probes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.linalg.decompositions import eigh
from fgo_jax.linalg.krylov import combination, krylov_space, random_block
from fgo_jax.linalg.operator import (
    Operator,
    bind_mean,
    check_examples,
    check_operator,
    example_count,
    is_due,
    random_signs,
    student_width,
)
from fgo_jax.linalg.rows import divided, unit_of
from fgo_jax.linalg.trees import vdot
from fgo_jax.probes import hutchinson_averages as averages
from fgo_jax.probes.groups import Groups, check_groups, counter, slots
from fgo_jax.probes.probe import Probe, ProbeInputs

SIGNALS = ("trace", "trace_square", "intrinsic_dimension")


def hutchinson(
    operator: Operator,
    num_samples: int = 4,
    every: int = 200,
    *,
    examples: int | None = None,
    batch_size: int | None = None,
    smoothing: float = 0.5,
    deflate: int = 0,
    groups: Groups | None = None,
) -> Probe:
    r"""Measures the trace and the dimension of a curvature operator with random sign vectors.

    The examples are split into two halves with operators :math:`F_1, F_2`. Each is unbiased
    for F, the operator of the whole distribution. With m random sign vectors z and
    :math:`x_i = z_i^T F_1 z_i`, :math:`y_i = z_i^T F_2 z_i`, unbiased over vectors and
    examples:

    .. math:: \mathrm{tr}\,F \approx \tfrac{1}{2m} \textstyle\sum_i (x_i + y_i)

    .. math:: (\mathrm{tr}\,F)^2 \approx \tfrac{1}{m(m-1)} \textstyle\sum_{i \ne j} x_i y_j

    .. math:: \mathrm{tr}\,F^2 \approx \tfrac1m \textstyle\sum_i \langle F_1 z_i, F_2 z_i \rangle

    The second uses only products of different vectors and different halves. The third never
    squares one operator, because that would add its sampling noise to the spectrum. The
    signals are:

    - ``trace``, in the unit of the loss over parameters squared;
    - ``trace_square``, in that unit squared;
    - ``intrinsic_dimension``: :math:`(\mathrm{tr}\,F)^2 / \mathrm{tr}\,F^2`, a number;
    - with ``groups``, the same as ``trace/NAME`` etc., of the group's diagonal block.

    Each sum is averaged over measurements (exponentially, debiased), and the dimension is
    one ratio of averages. If its sums are not both positive, the last dimension stays and
    ``held`` counts the measurement. A measurement that is not finite changes nothing but
    ``held``.

    Errors are standard errors over the vectors (delta method for the ratio), widened to
    Student's t: 1.96 of them cover the truth in 95 % unless a few eigenvalues dominate.
    With four vectors and one eigenvalue of 50 above 99 of 0.1, they cover trace and dimension in
    80 to 85 %. The error of the square is widened to its log scale, which covers it in nine cases
    of ten there. Errors do not include the noise of the choice of examples; only the spread of
    several measurements shows it.

    A few outliers dominate the variance of all three sums. ``deflate`` = k takes the top k
    Ritz vectors Q of :math:`(F_1 + F_2) / 2`, adds :math:`\mathrm{tr}\,Q F Q^T` and
    :math:`\mathrm{tr}\,Q F_1 F_2 Q^T` exactly and projects z off them. The estimates stay
    unbiased for any Q. With a good one, only the noise of the bulk remains.

    A measurement costs ``2 * num_samples`` products on half of the examples, one at a time,
    and the memory of three pytrees shaped like the parameters. Each group costs as many
    products again. ``deflate`` costs another ``6 * deflate + 8`` products and
    ``12 * deflate + 20`` bytes per parameter.

    Args:
      operator: ``(params, batch) -> matvec``, as :func:`fgo_jax.curvature.ggn` returns;
        symmetric, and a mean over the examples of its batch. If it requires a keyword
        ``key``, as :func:`fgo_jax.curvature.sampled_fisher` does, each half of each
        measurement passes a fresh one.
      num_samples: m, sign vectors of a measurement, at least 2.
      every: steps between measurements, which are at ``every, 2 * every, ...``.
      examples: how many leading examples of ``batch`` to read, an even number; None for an
        eighth of the batch, at least 2. Under the ``axis_name`` of :func:`fgo_jax.phased`,
        of each device's part.
      batch_size: the declared size of ``batch``; None for any.
      smoothing: weight of the old average in the new one, in [0, 1).
      deflate: k, Ritz vectors that are taken exactly; fewer than there are parameters.
      groups: parts of the tree to measure separately, from
        :func:`fgo_jax.probes.layer_groups`; not together with ``deflate``.

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires ``params`` and ``batch=`` of the update.

    Raises:
      ValueError: for numbers out of range; when traced, for a ``batch`` or groups that do
        not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> linear = lambda params, batch: batch["x"] @ params
      >>> fisher = fgo.curvature.ggn(linear, "squared_error")
      >>> probe = fgo.probes.hutchinson(fisher, num_samples=8, examples=64)
      >>> params = jnp.zeros((5, 1))
      >>> batch = {"x": jax.random.normal(jax.random.key(0), (64, 5))}
      >>> inputs = fgo.probes.ProbeInputs(
      ...     None, None, params, batch, jax.random.key(1), jnp.int32(200)
      ... )
      >>> read = probe.read(probe.measure(inputs, probe.init(params)))
      >>> bool(abs(read["trace"].value - 5.0) < 1.0)  # the identity, from 64 examples
      True

    Source: Hutchinson (1989), "A stochastic estimator of the trace of the influence
    matrix"; Meyer et al. (2021), "Hutch++", on deflation; Chun et al. (ICLR 2026) on the
    bias that the two halves remove.
    """
    check_operator(operator)
    _checks.positive_int("num_samples", num_samples, 2)
    _checks.integer("every", every)
    _checks.fraction("smoothing", smoothing)
    _checks.positive_int("deflate", deflate, 0)
    names = check_groups(groups)
    if deflate and names:
        raise ValueError(
            "deflate= takes eigenvectors of the whole operator, not of its blocks: "
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
        init=lambda params: averages.init(1 + len(names)),
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
        read=functools.partial(averages.read, names=names),
        requires=("params", "batch"),
        counter=functools.partial(counter, names=names),
        check=check,
    )


def _measure(
    inputs: ProbeInputs,
    state: averages.HutchinsonState,
    *,
    operator: Operator,
    count: Callable[[Any], int],
    num_samples: int,
    smoothing: Any,
    deflate: int,
    groups: Groups | None,
) -> averages.HutchinsonState:
    params = inputs.params
    half = count(inputs.batch) // 2
    first, second = (
        bind_mean(
            operator,
            params,
            mesh.examples(inputs.batch, number * half, half),
            inputs.key,
            number,
            inputs.axis_name,
        )
        for number in (0, 1)
    )
    members = slots(groups, params)
    # The start is not fold_in(key, 1): that is split(key)[1], the key of a sign vector. A
    # subspace that depends on the signs projected off it would bias the estimates.
    *keys, start_key = jax.random.split(inputs.key, num_samples + 1)
    exact = None
    top = None
    if deflate:
        top = _top_subspace(first, second, params, start_key, deflate)
        exact = jax.lax.map(lambda vector: _forms(first, second, vector), top)

    def sample(job: tuple[jax.Array, jax.Array]) -> _Forms:
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
    # One vector at a time: m of them at once would take m times the memory.
    samples = jax.lax.map(sample, jobs)
    forms = (samples,) if exact is None else (samples, exact)
    # In a unit of about the largest form fourth powers stay within float32.
    samples = jax.tree.map(lambda x: x.reshape(len(members), num_samples), samples)
    sizes = [(f.first * f.unit, f.second * f.unit, f.unit) for f in (samples, *forms[1:])]
    found = jax.vmap(lambda own: unit_of([own, *sizes[1:]]))(sizes[0])
    state = averages.in_unit_of(state, jnp.where(found < 2.0**126, found, 0.0))  # if finite
    samples = _in_unit(samples, state.unit[:, None])
    if exact is not None:
        terms = _in_unit(jax.tree.map(lambda x: x[None], exact), state.unit[:, None])
        sums = [jnp.sum(term, axis=1, keepdims=True) for term in terms]
        samples = [drawn + term for drawn, term in zip(samples, sums, strict=True)]
    return averages.accumulate(state, *jax.vmap(_moments)(*samples), smoothing)


def _top_subspace(
    first: Callable[[Any], Any], second: Callable[[Any], Any], params: Any, key: Any, size: int
) -> Any:
    """Leaves [size, *leaf.shape]: orthonormal Ritz vectors of the two halves' mean."""

    def mean(vector: Any) -> Any:
        total = optax.tree.add(first(vector), second(vector))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / 2, total)

    space = krylov_space(mean, random_block(key, params, 1), 2 * size + 4)
    _, vectors = eigh(space.matrix)
    return combination(jnp.flip(vectors, 1)[:, :size].T, space.basis)


class _Forms(NamedTuple):
    """Quadratic forms of one vector or of several, in units of their own."""

    first: jax.Array  # z^T F_1 z
    second: jax.Array  # z^T F_2 z
    product: jax.Array  # <F_1 z, F_2 z>
    unit: jax.Array  # of F, a power of two


def _forms(
    first: Callable[[Any], Any], second: Callable[[Any], Any], vector: Any, within: Any = None
) -> _Forms:
    """The forms of z; the last is summed over the leaves `within`."""
    products = tuple(optax.tree.cast(half(vector), jnp.float32) for half in (first, second))
    unit = unit_of(products)  # the squares may leave float32
    a, b = divided(products, unit)
    c = a if within is None else jax.tree.map(lambda on, leaf: on * leaf, within, a)
    return _Forms(vdot(vector, a), vdot(vector, b), vdot(c, b), unit)


def _in_unit(forms: _Forms, unit: jax.Array) -> list[jax.Array]:
    ratio = forms.unit / unit
    return [forms.first * ratio, forms.second * ratio, forms.product * ratio * ratio]


def _moments(x: jax.Array, y: jax.Array, xy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Unbiased [tr F, (tr F)^2, tr F^2], and their covariance over the vectors."""
    m = x.shape[0]
    trace = (x + y) / 2
    square = (jnp.sum(x) * jnp.sum(y) - jnp.sum(x * y)) / (m * (m - 1))
    # First-order influence of each vector; d (tr F)^2 = 2 tr F d tr F.
    influence = jnp.stack([trace, 2 * jnp.mean(trace) * trace, xy])
    influence = influence - jnp.mean(influence, axis=1, keepdims=True)
    covariance = jnp.tensordot(
        influence, influence, axes=(1, 1), precision=jax.lax.Precision.HIGHEST
    ) / (m * (m - 1))
    covariance = student_width(m - 1) ** 2 * covariance
    return jnp.stack([jnp.mean(trace), square, jnp.mean(xy)]), covariance
