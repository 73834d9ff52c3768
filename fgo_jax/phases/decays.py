r"""How the learning rate falls in execution.

A decay is a factor on the learning rate that begins at one. s is the number of updates in the
phase. L is ``steps``, or ``ratio`` times the number of updates before the phase. That number
counts as at least the ``min_steps`` of the earlier phases, and at least ``handover_steps``. This
matters only for a phase that is forced by hand soon after the start.

| decay | factor | ends |
|---|---|---|
| :func:`adaptive` | follows the measured energy of the slow momentum | never |
| :func:`hyperbolic` | 1 / (1 + s/L) | never |
| :func:`inverse_sqrt` | 1 / sqrt(1 + s/L) | never |
| :func:`linear` | 1 - s/L | at L |
| :func:`one_minus_sqrt` | 1 - sqrt(s/L) | at L |
| :func:`cosine` | (1 + cos(pi s/L)) / 2 | at L |
| :func:`exponential` | 100^(-s/L) | at L, at a hundredth |

With ``total_steps`` of :func:`fgo_jax.phased` each of them ends at that step. For a decay that
ends, L is then the number of steps left, unless ``steps`` is given. The others are kept below a
straight line from one, where the phase begins, to zero at ``total_steps``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.phases.decay import Decay, length_of, make_decay
from fgo_jax.phases.rates import Progress

__all__ = [
    "Decay",
    "Progress",
    "adaptive",
    "cosine",
    "exponential",
    "hyperbolic",
    "inverse_sqrt",
    "linear",
    "one_minus_sqrt",
]


def adaptive(
    steps: int | None = None,
    *,
    ratio: float = 1.0,
    floor: float = 0.0,
    onset: float | None = None,
) -> Decay:
    r"""Falls while the slow momentum loses energy, never faster than 1/t.

    The energy (squared norm) of the slow momentum is measured every ten steps. It falls as
    :math:`t^{-q}`: q is 0 where past directions agree, 1 where they are independent noise,
    and 2 where the parameters fluctuate around a stationary point
    (:func:`fgo_jax.smoothing.energy_exponent.energy_exponent`). The factor f obeys

    .. math:: -\frac{d \log f}{d \log (L + s)} = \min(1, \max(0, q - q_0)).

    So f falls at most as fast as the hyperbolic decay, and stays while q is at most
    :math:`q_0`.

    With the onset :math:`q_0 = 0` the rate falls as soon as directions are partly noise. Use it
    for the last weights, which hold that noise. With :math:`q_0 = 1` it falls only when q is
    above 1. Use it for averaged weights: the average damps noise at any rate. Under a rate that
    falls as :math:`t^{-p}` resting parameters have q = 2 - p. Once they rest, the
    rate therefore falls as 1/t with the onset 0, and as 1/sqrt(t) with the onset 1.

    It needs a slow momentum: a positive ``slow_share`` of the phase.

    Args:
      steps: L, in updates. None: ``ratio`` times the updates before the phase.
      ratio: see ``steps``.
      floor: the smallest factor, in [0, 1).
      onset: :math:`q_0`; None is 1 where the weights are averaged and 0 where they are not.

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3, decay=fgo.decays.adaptive(ratio=2.0))

    Source: this library's. That a rate should fall when the iterates only move to and fro:
    Pflug (1990), "Non-asymptotic confidence bounds for stochastic approximation algorithms
    with constant step size".
    """
    if onset is not None:
        _checks.non_negative("onset", onset)

    def exponent(progress: Progress, energy_exponent: jax.Array) -> jax.Array:
        start = jnp.where(progress.averaged, 1.0, 0.0) if onset is None else onset
        length = length_of(progress, steps, ratio)
        elapsed = progress.phase_step.astype(jnp.float32)
        own = jnp.clip(energy_exponent - jnp.asarray(start, jnp.float32), 0.0, 1.0)
        own = jnp.where(jnp.isnan(own), 0.0, own)
        # The mean over log(L + s), so that all steps together are one power of 1 + s/L. A sum
        # of ever smaller logarithms would stop growing in float32; this mean keeps its value.
        weight = jnp.log1p(1.0 / (length + elapsed)) / jnp.log1p((elapsed + 1.0) / length)
        return progress.decay_exponent + weight * (own - progress.decay_exponent)

    def factor(progress: Progress, share: jax.Array) -> jax.Array:
        return jnp.exp(-progress.decay_exponent * jnp.log1p(share))

    return make_decay(factor, steps, ratio, floor, ends=False, exponent=exponent)


def hyperbolic(steps: int | None = None, *, ratio: float = 1.0, floor: float = 0.0) -> Decay:
    """1 / (1 + s/L): it never ends, so a start that was too early does no lasting harm.

    Args:
      steps: L, in updates. None: ``ratio`` times the updates before the phase.
      ratio: see ``steps``.
      floor: the smallest factor, in [0, 1).

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> phase = fgo.execution(1e-3, decay=fgo.decays.hyperbolic())

    Source: the rate of averaged stochastic approximation, Robbins and Monro (1951).
    """
    return make_decay(lambda _, share: 1.0 / (1.0 + share), steps, ratio, floor, ends=False)


def inverse_sqrt(steps: int | None = None, *, ratio: float = 1.0, floor: float = 0.0) -> Decay:
    """1 / sqrt(1 + s/L): it never ends. Arguments, result and errors as :func:`hyperbolic`.

    Args:
      steps: L, in updates.
      ratio: see ``steps``.
      floor: the smallest factor.

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> phase = fgo.execution(1e-3, decay=fgo.decays.inverse_sqrt(1000))

    Source: the rate that averaging of the iterates asks for, Polyak and Juditsky (1992).
    """
    return make_decay(lambda _, share: jax.lax.rsqrt(1.0 + share), steps, ratio, floor, ends=False)


def linear(steps: int | None = None, *, ratio: float = 1.0, floor: float = 0.0) -> Decay:
    """1 - s/L: it ends after L updates. Arguments, result and errors as :func:`hyperbolic`.

    Args:
      steps: L, in updates.
      ratio: see ``steps``.
      floor: the smallest factor.

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> phase = fgo.execution(1e-3, decay=fgo.decays.linear(1000))

    Source: Defazio et al. (2023), "Optimal linear decay learning rate schedules and further
    refinements".
    """
    return make_decay(lambda _, share: 1.0 - jnp.minimum(share, 1.0), steps, ratio, floor)


def one_minus_sqrt(steps: int | None = None, *, ratio: float = 1.0, floor: float = 0.0) -> Decay:
    """1 - sqrt(s/L): it ends after L updates. Arguments, result and errors as :func:`hyperbolic`.

    Args:
      steps: L, in updates.
      ratio: see ``steps``.
      floor: the smallest factor.

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> phase = fgo.execution(1e-3, decay=fgo.decays.one_minus_sqrt(1000))

    Source: Haegele et al. (2024), "Scaling laws and compute-optimal training beyond fixed
    training durations".
    """
    return make_decay(lambda _, share: 1.0 - jnp.sqrt(jnp.minimum(share, 1.0)), steps, ratio, floor)


def cosine(steps: int | None = None, *, ratio: float = 1.0, floor: float = 0.0) -> Decay:
    """(1 + cos(pi s/L)) / 2: it ends after L updates. The rest as :func:`hyperbolic`.

    Args:
      steps: L, in updates.
      ratio: see ``steps``.
      floor: the smallest factor.

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> phase = fgo.execution(1e-3, decay=fgo.decays.cosine(1000))

    Source: Loshchilov and Hutter (2017), "SGDR".
    """

    def factor(_: Progress, share: jax.Array) -> jax.Array:
        return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(share, 1.0)))

    return make_decay(factor, steps, ratio, floor)


def exponential(steps: int | None = None, *, ratio: float = 1.0, floor: float = 0.0) -> Decay:
    """100^(-s/L): a hundredth is left after L updates. The rest as :func:`hyperbolic`.

    Args:
      steps: L, in updates.
      ratio: see ``steps``.
      floor: the smallest factor.

    Returns:
      A :class:`Decay`.

    Raises:
      ValueError: for numbers out of range.

    Example:
      >>> import fgo_jax as fgo
      >>> phase = fgo.execution(1e-3, decay=fgo.decays.exponential(1000))

    Source: section 4 of the FGO paper, phase 3.
    """

    def factor(_: Progress, share: jax.Array) -> jax.Array:
        return jnp.exp(-jnp.minimum(share, 1.0) * jnp.log(jnp.float32(100.0)))

    return make_decay(factor, steps, ratio, floor)
