"""The spectrum of a curvature operator by Lanczos quadrature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.linalg.krylov import EigenvalueCounts, count_eigenvalues, krylov_space, random_block
from fgo_jax.linalg.operator import (
    Operator,
    bind_mean,
    check_examples,
    check_operator,
    example_count,
    is_due,
    student_width,
)
from fgo_jax.linalg.rows import unit_of
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

SIGNALS = ("trace", "top_eigenvalue", "intrinsic_dimension", "energy_rank", "energy_fraction")


class LanczosState(NamedTuple):
    """The last measurement: one number for each signal, in the order of `SIGNALS`."""

    evaluations: jax.Array  # [], int32; measurements read
    held: jax.Array  # [], int32; measurements that were not finite, or all zero
    readings: jax.Array  # [5], float32
    reading_errors: jax.Array  # [5], float32


def lanczos(
    operator: Operator,
    num_steps: int = 12,
    every: int = 500,
    *,
    num_starts: int = 2,
    examples: int | None = None,
    batch_size: int | None = None,
    energy: float = 0.9,
    block_size: int = 1,
) -> Probe:
    r"""Measures the spectrum of a positive semi-definite operator by Lanczos quadrature.

    From a random start the Lanczos process gives Ritz values :math:`\theta_j` with weights
    :math:`\tau_j`: of the d eigenvalues, about :math:`d\,\tau_j` are close to
    :math:`\theta_j`. With counts :math:`n_j` that sum to d, the signals are:

    - ``trace``: :math:`\sum_j n_j \theta_j`, in the unit of the loss over parameters squared;
    - ``top_eigenvalue``: the largest Ritz value over the starts, in the same unit; never
      above the true one;
    - ``intrinsic_dimension``: :math:`(\sum_j n_j \theta_j)^2 / \sum_j n_j \theta_j^2`;
    - ``energy_rank``: how many top eigenvalues hold ``energy`` of the trace, interpolated
      inside the count of a Ritz value that stands for many;
    - ``energy_fraction``: that rank divided by d.

    The count is 1 for the top Ritz values that have converged in every start, because the
    weight of a single eigenvalue is a chi-square draw and says nothing. All other Ritz
    values share the remaining dimensions by their weights. A converged value keeps its
    weight where its mean over the starts is too large for one eigenvalue (four sigma): it is
    then a multiple eigenvalue.

    Bias: one vector per start cannot see multiplicity. With two starts, a top eigenvalue
    repeated exactly, less than about 15 times, can pass for a single one. All signals but
    ``top_eigenvalue`` are then wrong by more than their errors. A block of start vectors
    sees as many copies as it is wide, and counts fewer copies exactly. Otherwise the trace
    is unbiased over the starts. The rank models the spread inside a bulk that few Ritz
    values resolve, and is good to 20 % there.

    The signals describe the mean curvature of the examples read. Few examples have a
    spectrum of few eigenvalues; :func:`fgo_jax.probes.hutchinson` removes this bias by its
    two halves. Errors are standard errors over the starts (for the top eigenvalue, the
    spread of its values). They are widened to Student's t, six-fold for two starts and by a
    tenth for sixteen, and NaN for one start. A measurement that is all zero or not finite
    changes nothing but ``held``, which counts it.

    A measurement costs ``num_starts * num_steps`` products. While it runs, the basis takes
    ``4 * (num_steps + block_size)`` bytes per parameter for any number of starts. The state
    is twelve numbers.

    Args:
      operator: ``(params, batch) -> matvec``, as :func:`fgo_jax.curvature.ggn` returns;
        symmetric and positive semi-definite (negative Ritz values count as zero). If it
        requires a keyword ``key``, each measurement passes a fresh one, to all its starts.
      num_steps: products per start.
      every: steps between measurements, which are at ``every, 2 * every, ...``.
      num_starts: random starts, run one after the other.
      examples: how many leading examples of ``batch`` to read; None for an eighth of it.
        Under the ``axis_name`` of :func:`fgo_jax.phased`, of each device's part.
      batch_size: the declared size of ``batch``; None for any.
      energy: share of the trace that the energy rank holds, in (0, 1].
      block_size: vectors of each start, at most ``num_steps``. A block wider than the
        multiplicity of the top eigenvalues counts them exactly. The degree of the
        polynomials in the operator falls to ``num_steps / block_size``.

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires ``params`` and ``batch=`` of the update.

    Raises:
      ValueError: for numbers out of range or that do not fit each other; when traced, for a
        ``batch`` that does not fit them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> eigenvalues = jnp.array([9.0, 1.0, 0.5, 0.25])
      >>> probe = fgo.probes.lanczos(lambda params, batch: lambda v: eigenvalues * v, num_steps=4)
      >>> batch = jnp.zeros((8, 1))  # this operator reads nothing from it
      >>> params = jnp.zeros(4)
      >>> inputs = fgo.probes.ProbeInputs(
      ...     None, None, params, batch, jax.random.key(0), jnp.int32(200)
      ... )
      >>> read = probe.read(probe.measure(inputs, probe.init(params)))
      >>> round(float(read["top_eigenvalue"].value), 3), round(float(read["energy_rank"].value))
      (9.0, 2)

    Source: Golub and Meurant (2010), "Matrices, moments and quadrature"; Ghorbani et al.
    (2019), "An investigation into neural net optimization via Hessian eigenvalue density".
    """
    check_operator(operator)
    _checks.positive_int("num_steps", num_steps)
    _checks.positive_int("num_starts", num_starts)
    _checks.positive_int("block_size", block_size)
    if block_size > num_steps:
        raise ValueError(
            f"num_steps={num_steps} is less than one product for each of the block_size="
            f"{block_size} vectors: pass num_steps= of at least {block_size}, better several "
            "times that."
        )
    _checks.integer("every", every)
    _checks.share("energy", energy)
    check_examples(examples, batch_size, minimum=1)
    count = functools.partial(example_count, examples=examples, batch_size=batch_size, minimum=1)

    def check(inputs: ProbeInputs) -> None:
        count(inputs.batch)

    return Probe(
        signals=SIGNALS,
        init=_init,
        due=lambda state, step: is_due(step, every),
        measure=functools.partial(
            _measure,
            operator=operator,
            count=count,
            num_steps=num_steps,
            num_starts=num_starts,
            block_size=block_size,
            energy=energy,
        ),
        read=lambda state: {
            name: Estimate(state.readings[i], state.reading_errors[i])
            for i, name in enumerate(SIGNALS)
        },
        requires=("params", "batch"),
        check=check,
    )


def _init(params: Any) -> LanczosState:
    del params
    return LanczosState(
        evaluations=jnp.zeros([], jnp.int32),
        held=jnp.zeros([], jnp.int32),
        readings=jnp.full([len(SIGNALS)], jnp.nan, jnp.float32),
        reading_errors=jnp.full([len(SIGNALS)], jnp.nan, jnp.float32),
    )


def _measure(
    inputs: ProbeInputs,
    state: LanczosState,
    *,
    operator: Operator,
    count: Callable[[Any], int],
    num_steps: int,
    num_starts: int,
    block_size: int,
    energy: Any,
) -> LanczosState:
    examples = count(inputs.batch)
    batch = mesh.examples(inputs.batch, 0, examples)
    matvec = bind_mean(operator, inputs.params, batch, inputs.key, axis_name=inputs.axis_name)

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        result = krylov_space(matvec, random_block(key, inputs.params, block_size), num_steps)
        return result.matrix, result.coupling

    # One start at a time: the basis takes most of the memory of this probe.
    matrices, couplings = jax.lax.map(run, jax.random.split(inputs.key, num_starts))
    dimension = float(optax.tree.size(inputs.params))  # as an int, beyond int32 for large models
    readings, errors = _summarise(matrices, couplings, dimension, energy)
    finite = jnp.all(jnp.isfinite(readings))
    return LanczosState(
        evaluations=jnp.where(finite, optax.safe_increment(state.evaluations), state.evaluations),
        held=jnp.where(finite, state.held, optax.safe_increment(state.held)),
        readings=jnp.where(finite, readings, state.readings),
        reading_errors=jnp.where(finite, errors, state.reading_errors),
    )


def _summarise(
    matrices: jax.Array, couplings: jax.Array, dimension: float, energy: Any
) -> tuple[jax.Array, jax.Array]:
    """Readings and errors, in the order of `SIGNALS`, from the starts' Krylov spaces."""
    starts = matrices.shape[0]
    unit = unit_of(matrices)  # sums of squares of the eigenvalues may leave float32
    counted = count_eigenvalues(matrices / unit, couplings / unit, dimension)
    first = jnp.sum(counted.counts * counted.ritz, axis=1)
    second = jnp.sum(counted.counts * jnp.square(counted.ritz), axis=1)
    rank = jax.vmap(functools.partial(_rank, energy=energy))(counted)
    top = counted.ritz[:, 0]
    if starts > 1:  # only products of different starts: a start's square is biased up
        numerator = jnp.square(jnp.sum(first)) - jnp.sum(jnp.square(first))
        numerator = numerator / (starts * (starts - 1))
    else:
        numerator = jnp.square(first[0])
    # NaN for a zero operator, which has no dimension: the measurement is then held.
    ratio = numerator / jnp.mean(second)
    influence = 2.0 * first / jnp.mean(first) - second / jnp.mean(second)
    values = jnp.stack(
        [jnp.mean(first), jnp.max(top), ratio, jnp.mean(rank), jnp.mean(rank) / dimension]
    )
    units = jnp.where(jnp.arange(len(SIGNALS)) < 2, unit, 1.0)
    if starts == 1:
        return units * values, jnp.full_like(values, jnp.nan)
    spread = jnp.stack([first, top, ratio * influence, rank, rank / dimension])
    errors = student_width(starts - 1) * jnp.std(spread, axis=1, ddof=1) / starts**0.5
    return units * values, units * errors


def _rank(counted: EigenvalueCounts, energy: Any) -> jax.Array:
    """Top eigenvalues that hold `energy` of the trace, for one start."""
    ritz, counts, single, converged = counted
    held = counts * ritz
    before = jnp.cumsum(held) - held
    # Less the rounding: a share that is reached exactly must not need one more eigenvalue.
    wanted = jnp.asarray(energy, jnp.float32) * jnp.sum(held) * (1.0 - 1e-5)
    x = jnp.clip((wanted - before) / jnp.where(held > 0.0, held, 1.0), 0.0, 1.0)
    # A Ritz value theta that has not converged stands for n eigenvalues. They are modelled as
    # spread evenly from (1 + w) theta to (1 - w) theta, which is half-way (in logarithms) to
    # the next Ritz value. The top u n of them hold x = (1 + w) u - w u^2 of their energy. With
    # all of them at theta (w = 0) the rank of the bulk would be up to a third too large.
    ratio = jnp.append(ritz[1:], 0.0) / jnp.where(ritz > 0.0, ritz, 1.0)
    w = jnp.where(converged, 0.0, 1.0 - jnp.sqrt(ratio))
    u = 2.0 * x / (1.0 + w + jnp.sqrt(jnp.maximum(jnp.square(1.0 + w) - 4.0 * w * x, 0.0)))
    part = jnp.where(single, jnp.ceil(x), u)
    return jnp.sum(jnp.where(held > 0.0, counts * part, 0.0))
