"""The three phases of the protocol."""

from __future__ import annotations

from typing import Any

import optax

from fgo_jax import _checks
from fgo_jax.phases import decays
from fgo_jax.phases.decays import Decay
from fgo_jax.phases.phase import Phase
from fgo_jax.phases.rates import Warmup, peak
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher

NAMES = ("acquisition", "reask", "execution")


def acquisition(
    learning_rate: float | optax.Schedule,
    warmup_steps: int = 0,
    *,
    transform: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> Phase:
    r"""Phase 1: warm-up to a high learning rate, then constant.

    Update t (from 0) uses the rate :math:`\eta(t) \min(1, (t+1)/W)`.

    Args:
      learning_rate: the peak :math:`\eta`; a number or an optax schedule of the step.
      warmup_steps: W, in updates.
      transform: gradients to a direction, with no learning rate and no minus sign. None is
        `optax.scale_by_adam()`, as in the paper. (:func:`fgo_jax.target_acquisition` passes
        the transform of its later phases.)
      weight_decay: decoupled, scaled by the effective rate, as in `optax.adamw`.
      mask: which leaves decay, as in `optax.adamw`.

    Returns:
      A :class:`fgo_jax.Phase`.

    Raises:
      ValueError: for a negative rate, decay or warm-up.

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.phased([fgo.acquisition(3e-3, warmup_steps=100)], [])

    Source: Friction-Guided Optimization (2026), section 4, phase 1.
    """
    _checks.learning_rate(learning_rate)
    _checks.integer("warmup_steps", warmup_steps, 0)
    return Phase(
        "acquisition",
        Warmup(learning_rate, warmup_steps),
        optax.scale_by_adam() if transform is None else transform,
        weight_decay=weight_decay,
        mask=mask,
    )


def reask(
    learning_rate: float | optax.Schedule,
    cut: float = 0.5,
    *,
    transform: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    slow_share: float | None = None,
) -> Phase:
    r"""Phase 2: the peak rate, or a part of it, with less noise in each update.

    Its rate is :math:`(1 - c)\,\eta(t)`. The paper cuts the rate by c and takes a natural
    gradient; these are the defaults. :func:`fgo_jax.target_acquisition` takes half of each update
    from :func:`fgo_jax.slow_momentum` instead (``cut=0.0, slow_share=0.5``). This damps the noise
    as much, and the mean gradient keeps its full rate.

    Args:
      learning_rate: the peak :math:`\eta` of acquisition; a number or an optax schedule.
      cut: c, the share of the rate that is taken away, in [0, 1).
      transform: a direction, as in :func:`acquisition`; None is
        :func:`fgo_jax.scale_by_kronecker_fisher`.
      weight_decay: as in :func:`acquisition`.
      mask: as in :func:`acquisition`.
      slow_share: share of the slow momentum in the direction, in [0, 1); None keeps none.

    Returns:
      A :class:`fgo_jax.Phase`.

    Raises:
      ValueError: for a negative rate, or a cut or share outside [0, 1).

    Example:
      >>> import fgo_jax as fgo
      >>> phases = [fgo.acquisition(3e-3), fgo.reask(3e-3, cut=0.6)]
      >>> tx = fgo.phased(phases, [fgo.triggers.after(500)])

    Source: Friction-Guided Optimization (2026), section 4, phase 2.
    """
    _checks.learning_rate(learning_rate)
    _checks.fraction("cut", cut)
    return Phase(
        "reask",
        peak(learning_rate, cut),
        scale_by_kronecker_fisher() if transform is None else transform,
        weight_decay=weight_decay,
        mask=mask,
        slow_share=slow_share,
    )


def execution(
    learning_rate: float | optax.Schedule,
    cut: float = 0.5,
    *,
    decay: Decay | None = None,
    transform: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    slow_share: float | None = None,
) -> Phase:
    r"""Phase 3: the learning rate falls.

    It begins at :math:`(1 - c)\,\eta`. :func:`fgo_jax.target_acquisition` passes ``cut=0.0,
    slow_share=0.5`` and an adaptive decay.

    The slow momentum lags, so parameters can overshoot and oscillate. At a share of one half each
    swing is about a twentieth of the one before; near one the oscillation lasts.

    Args:
      learning_rate: the peak :math:`\eta`; a number or an optax schedule.
      cut: c, as in :func:`reask`.
      decay: from :mod:`fgo_jax.decays`; None is `fgo.decays.hyperbolic()`. Give it a length,
        as in `fgo.decays.cosine(1000)`, where execution is the first phase.
      transform: a direction, as in :func:`acquisition`; None keeps that of the phase before.
      weight_decay: as in :func:`acquisition`.
      mask: as in :func:`acquisition`.
      slow_share: share of the slow momentum in the direction, in [0, 1); None keeps none. An
        adaptive decay needs one.

    Returns:
      A :class:`fgo_jax.Phase`.

    Raises:
      ValueError: for a negative rate, a cut or share outside [0, 1), or an adaptive decay
        without a share.

    Example:
      >>> import fgo_jax as fgo
      >>> alone = fgo.execution(1e-3, cut=0.0, decay=fgo.decays.cosine(1000))
      >>> tx = fgo.phased([alone], [])

    Source: Friction-Guided Optimization (2026), section 4, phase 3.
    """
    _checks.learning_rate(learning_rate)
    _checks.fraction("cut", cut)
    return Phase(
        "execution",
        peak(learning_rate, cut),
        transform,
        decays.hyperbolic() if decay is None else decay,
        weight_decay=weight_decay,
        mask=mask,
        slow_share=slow_share,
    )
