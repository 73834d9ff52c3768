"""The spectrum of a curvature operator by Lanczos quadrature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.krylov import EigenvalueCounts, count_eigenvalues, krylov_space, random_block
from fgo_jax.linalg.operator import (
    Operator,
    bind,
    check_examples,
    example_count,
    is_due,
    student_width,
)
from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs

SIGNALS = ("trace", "top_eigenvalue", "intrinsic_dimension", "energy_rank", "energy_fraction")


class LanczosState(NamedTuple):
    """The last measurement, one number per signal in the order of `SIGNALS`."""

    evaluations: jax.Array  # [], int32; measurements taken over
    held: jax.Array  # [], int32; measurements without a spectrum: not finite, or all zero
    readings: jax.Array  # [5], float32
    reading_errors: jax.Array  # [5], float32


def lanczos(
    operator: Operator,
    num_steps: int = 12,
    num_starts: int = 2,
    every: int = 500,
    examples: int | None = None,
    batch_size: int | None = None,
    energy: float = 0.9,
    block_size: int = 1,
) -> Probe:
    r"""Measures the spectrum of a positive semi-definite operator by Lanczos quadrature.

    From a random start the Lanczos process gives Ritz values :math:`\theta_j` and weights
    :math:`\tau_j`; ``d tau_j`` of the d eigenvalues are like ``theta_j``. Signals:

    - ``trace``: :math:`\sum_j n_j \theta_j`;
    - ``top_eigenvalue``: the largest Ritz value over the starts, never above the truth;
    - ``intrinsic_dimension``: :math:`(\sum_j n_j \theta_j)^2 / \sum_j n_j \theta_j^2`;
    - ``energy_rank``: top eigenvalues that hold ``energy`` of the trace, interpolated
      inside the count of a Ritz value that stands for many;
    - ``energy_fraction``: that rank divided by d.

    The counts :math:`n_j` are one for the top Ritz values that have converged in every
    start, because the quadrature weight of a single eigenvalue is a chi-square draw and
    says nothing, and the weights, scaled to the remaining dimensions, for the rest. A
    converged value whose weight, averaged over the starts, is too large for one
    eigenvalue (four sigma) is a multiple one and keeps its weight.

    Bias: one vector per start cannot see multiplicity, so at two starts a top eigenvalue
    repeated *exactly* less than about 15 times can pass for one, and all signals but
    ``top_eigenvalue`` are then wrong beyond their error. A block of start vectors sees as
    many copies as it is wide, and counts those of a narrower multiple exactly. Otherwise
    the trace is unbiased over the starts. The rank models the spread inside a bulk that
    few Ritz values resolve, and is good to 20 % there.

    All of it describes the mean curvature *of the examples read*. Few examples have a
    spectrum of few eigenvalues: compare with :func:`fgo_jax.probes.hutchinson`, whose
    halves remove this. Errors are standard errors over the starts (of the top eigenvalue,
    the spread of its values), widened to Student's t, six-fold for two starts and by a
    tenth for sixteen; NaN for one start. A measurement that is not finite or all zero is
    held and counted in ``held``.

    A measurement costs ``num_starts * num_steps`` products. While it runs it takes
    ``4 * (num_steps + block_size)`` bytes per parameter for the basis, whatever the number
    of starts; the state is ten numbers.

    Args:
      operator: ``(params, batch) -> matvec``, as :func:`fgo_jax.curvature.ggn` returns;
        symmetric and positive semi-definite (negative Ritz values count as zero). One that
        requires a keyword ``key`` gets a fresh one for each measurement, for all starts.
      num_steps: products per start.
      num_starts: random starts, run one after the other.
      every: measured at the steps ``every, 2 * every, ...``.
      examples: leading examples of ``batch`` that are read; None for an eighth of it.
      batch_size: the size that ``batch`` is declared to have; None takes any.
      energy: share of the trace that the energy rank holds, in [0, 1).
      block_size: start vectors of each start, at most ``num_steps``. Wider than the
        multiplicity of the top eigenvalues, it counts them exactly; polynomials in the
        operator then have a degree of ``num_steps / block_size`` only.

    Raises:
      ValueError: for sizes that are no such integers or do not fit each other, and when traced
        for a ``batch`` that does not fit them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fgo_jax.probes.probe import ProbeInputs
      >>> eigenvalues = jnp.array([9.0, 1.0, 0.5, 0.25])
      >>> probe = lanczos(lambda params, batch: lambda v: eigenvalues * v, num_steps=4)
      >>> batch = jnp.zeros((8, 1))  # this operator reads nothing from it
      >>> params = jnp.zeros(4)
      >>> inputs = ProbeInputs(None, None, params, batch, jax.random.key(0), jnp.int32(200))
      >>> read = probe.read(probe.measure(inputs, probe.init(params)))
      >>> round(float(read["top_eigenvalue"].value), 3), round(float(read["energy_rank"].value))
      (9.0, 2)

    Source: Golub and Meurant (2010), "Matrices, moments and quadrature"; Ghorbani et al.
    (2019), "An investigation into neural net optimization via Hessian eigenvalue density".
    """
    _checks.positive_int("num_steps", num_steps)
    _checks.positive_int("num_starts", num_starts)
    _checks.positive_int("block_size", block_size)
    if block_size > num_steps:
        raise ValueError(
            f"num_steps={num_steps} products cannot take block_size={block_size} vectors once: "
            f"pass num_steps= of at least {block_size}, better several times that."
        )
    _checks.integer("every", every)
    _checks.fraction("energy", energy)
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
    batch = jax.tree.map(lambda leaf: leaf[:examples], inputs.batch)
    matvec = bind(operator, inputs.params, batch, inputs.key)

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        result = krylov_space(matvec, random_block(key, inputs.params, block_size), num_steps)
        return result.matrix, result.coupling

    # One start after the other: the basis is the memory of this probe.
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
    counted = count_eigenvalues(matrices, couplings, dimension)
    first = jnp.sum(counted.counts * counted.ritz, axis=1)
    second = jnp.sum(counted.counts * jnp.square(counted.ritz), axis=1)
    rank = jax.vmap(functools.partial(_rank, energy=energy))(counted)
    top = counted.ritz[:, 0]
    if starts > 1:  # products of different starts: a start's own square is biased up
        numerator = jnp.square(jnp.sum(first)) - jnp.sum(jnp.square(first))
        numerator = numerator / (starts * (starts - 1))
    else:
        numerator = jnp.square(first[0])
    # NaN for a zero operator, whose dimension is nothing: the measurement is then held.
    ratio = numerator / jnp.mean(second)
    influence = 2.0 * first / jnp.mean(first) - second / jnp.mean(second)
    values = jnp.stack(
        [jnp.mean(first), jnp.max(top), ratio, jnp.mean(rank), jnp.mean(rank) / dimension]
    )
    if starts == 1:
        return values, jnp.full_like(values, jnp.nan)
    spread = jnp.stack([first, top, ratio * influence, rank, rank / dimension])
    return values, student_width(starts - 1) * jnp.std(spread, axis=1, ddof=1) / starts**0.5


def _rank(counted: EigenvalueCounts, energy: Any) -> jax.Array:
    """Top eigenvalues that hold `energy` of the trace, for one start."""
    ritz, counts, single, converged = counted
    held = counts * ritz
    before = jnp.cumsum(held) - held
    # Less the rounding: a share reached exactly must not take one more eigenvalue.
    wanted = jnp.asarray(energy, jnp.float32) * jnp.sum(held) * (1.0 - 1e-5)
    x = jnp.clip((wanted - before) / jnp.where(held > 0.0, held, 1.0), 0.0, 1.0)
    # The n eigenvalues behind a Ritz value that has not converged spread evenly around it,
    # (1 + w) theta ... (1 - w) theta, down to half-way (in logarithms) to the next one. The
    # top u n of them hold x = (1 + w) u - w u^2 of its energy. Stacked on theta (w = 0),
    # the bulk would need up to a third more eigenvalues than it does.
    ratio = jnp.append(ritz[1:], 0.0) / jnp.where(ritz > 0.0, ritz, 1.0)
    w = jnp.where(converged, 0.0, 1.0 - jnp.sqrt(ratio))
    u = 2.0 * x / (1.0 + w + jnp.sqrt(jnp.maximum(jnp.square(1.0 + w) - 4.0 * w * x, 0.0)))
    part = jnp.where(single, jnp.ceil(x), u)
    return jnp.sum(jnp.where(held > 0.0, counts * part, 0.0))
