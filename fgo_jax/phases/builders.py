"""The three phases, each a gradient transformation by itself too."""

from __future__ import annotations

from typing import Any

import optax

from fgo_jax import _checks
from fgo_jax.phases import rates
from fgo_jax.phases.phase import Phase
from fgo_jax.phases.rates import DECAYS, peak, warmup
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher

NAMES = ("acquisition", "reask", "execution")


def acquisition(
    learning_rate: float | optax.Schedule,
    warmup_steps: int = 0,
    transform: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
) -> Phase:
    r"""Phase 1: linear warm-up to a high learning rate, then constant.

    Update t (from 0) uses :math:`\eta(t) \min(1, (t+1)/W)`.

    Args:
      learning_rate: peak :math:`\eta`; a number or an optax schedule of the step.
      warmup_steps: W.
      transform: gradients to a direction; `optax.scale_by_adam()` by default, as in the paper.
        :func:`fgo_jax.target_acquisition` passes its refinement.
        `optax.chain(optax.add_noise(...), optax.scale_by_adam())` adds gradient noise.
      weight_decay: decoupled decay as in `optax.adamw`, scaled by the effective rate.
      mask: which leaves decay, as in `optax.adamw`.

    Raises:
      ValueError: for a negative rate, decay or warm-up.

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.acquisition(3e-3, warmup_steps=100)

    Source: Friction-Guided Optimization (2026), section 4, phase 1.
    """
    _checks.learning_rate(learning_rate)
    _checks.integer("warmup_steps", warmup_steps, 0)
    return Phase(
        "acquisition",
        optax.scale_by_adam() if transform is None else transform,
        warmup(learning_rate, warmup_steps),
        weight_decay,
        mask,
    )


def reask(
    learning_rate: float | optax.Schedule,
    cut: float = 0.5,
    transform: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    slow_share: float | None = None,
) -> Phase:
    r"""Phase 2: a natural gradient at a constant rate :math:`(1 - c)\,\eta(t)`.

    Gradients are asked again in either of two ways: at a rate cut by c, or with a share of
    :func:`fgo_jax.slow_momentum` in the direction, which cuts the rate of what a single
    gradient says and keeps that of what the gradients of this phase agree on. The defaults are
    the paper's; :func:`fgo_jax.target_acquisition` passes ``cut=0.0, slow_share=0.5``.

    Args:
      learning_rate: the peak :math:`\eta` that acquisition used; number or schedule.
      cut: c, the share of the rate that is taken away.
      transform: :func:`fgo_jax.scale_by_kronecker_fisher` by default.
      weight_decay: as in :func:`acquisition`.
      mask: as in :func:`acquisition`.
      slow_share: of the slow momentum; None keeps none.

    Raises:
      ValueError: for a negative rate, or a cut or share outside [0, 1).

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.reask(3e-3, cut=0.6)

    Source: Friction-Guided Optimization (2026), section 4, phase 2.
    """
    _checks.learning_rate(learning_rate)
    _checks.fraction("cut", cut)
    return Phase(
        "reask",
        scale_by_kronecker_fisher() if transform is None else transform,
        peak(learning_rate, cut),
        weight_decay,
        mask,
        slow_share=slow_share,
    )


def execution(
    learning_rate: float | optax.Schedule,
    cut: float = 0.5,
    decay: str = "hyperbolic",
    decay_steps: int | None = None,
    decay_ratio: float = 1.0,
    floor: float = 0.0,
    transform: optax.GradientTransformation | None = None,
    weight_decay: float = 0.0,
    mask: Any = None,
    slow_share: float | None = None,
    decay_onset: float = 0.0,
) -> Phase:
    r"""Phase 3: decay of the rate :math:`(1 - c)\,\eta` to its floor.

    With s steps into the phase and the length L = ``decay_steps``, or
    :math:`\kappa t_1` where the phase began after :math:`t_1` steps of training, the
    factor is ``hyperbolic`` 1/(1 + s/L), ``inverse_sqrt`` 1/sqrt(1 + s/L), or, with
    x = min(1, s/L), ``linear`` 1 - x, ``one_minus_sqrt`` 1 - sqrt(x), ``cosine``
    (1 + cos(pi x))/2, ``exponential`` 100^-x. The first two have no end: a decay that
    began too early still arrives.

    ``adaptive`` has none either and takes its speed from the slow momentum, whose energy is
    measured every ten steps and falls as :math:`t^{-q}`: q is 0 where directions agree, 1
    where they are noise, 2 where the parameters have come to rest as far as this rate lets
    them (:func:`fgo_jax.smoothing.energy_exponent.energy_exponent`). The factor f obeys

    .. math:: -\frac{d \log f}{d \log (L + s)} = \min(1, \max(0, q - q_0)),

    so that at the fastest it is the hyperbolic law, and where the loss is still going down
    along some direction the rate stays. With the onset :math:`q_0 = 0` noise is a reason to
    fall, as it must be where the last step's noise is in the weights; with 1 only rest is,
    which is right for averaged weights, whose average damps noise at any rate. A rate that
    falls lets the parameters rest less: under a rate of :math:`t^{-p}` resting parameters have
    q = 2 - p. So a rate at rest comes to fall as 1/t with the onset 0, and as 1/sqrt(t) with 1.

    With ``total_steps`` of :func:`fgo_jax.phased` every law ends there; those without an end
    take the smaller of themselves and a line. :func:`fgo_jax.target_acquisition` passes
    ``cut=0.0, decay="adaptive", slow_share=0.5``.

    The share of a slow momentum bounds what its lag can do. Where the rate has come to fall
    as A/(h t) in a direction of curvature h, t counted from the momentum's start, the
    parameter and the mean of its directions over a memory of w t steps are a linear
    oscillator in log t, with the damping ratio
    :math:`((1 - \sigma) A + 1/w) / (2 \sqrt{A/w}) \ge \sqrt{1 - \sigma}` at the share
    :math:`\sigma`, whatever A and w. At a half it is well damped, however stiff the
    direction: a swing leaves about a twentieth of itself to the next. Towards one it rings.

    Args:
      learning_rate: the peak :math:`\eta`; number or schedule.
      cut: c, as in :func:`reask`.
      decay: name of the law.
      decay_steps: L. Needed when the phase is used alone, where no steps precede it.
      decay_ratio: kappa, used where ``decay_steps`` is None.
      floor: smallest factor.
      transform: None keeps the transform of the phase before; alone,
        :func:`fgo_jax.scale_by_kronecker_fisher`.
      weight_decay: as in :func:`acquisition`.
      mask: as in :func:`acquisition`.
      slow_share: of the slow momentum; None keeps none. An adaptive law needs one.
      decay_onset: :math:`q_0` of the adaptive law; the others do not read it.

    Raises:
      ValueError: for an unknown law, a negative rate or onset, a share outside [0, 1), an
        adaptive law without a share, or alone without ``decay_steps``.

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.execution(1e-3, cut=0.0, decay="cosine", decay_steps=1000)

    Sources: Friction-Guided Optimization (2026), section 4, phase 3; 1-sqrt, Haegele et
    al. (2024); the hyperbolic law is that of averaged stochastic approximation. That a rate
    should fall when iterates only move to and fro: Pflug (1990), "Non-asymptotic confidence
    bounds for stochastic approximation algorithms with constant step size".
    """
    _checks.learning_rate(learning_rate)
    _checks.fraction("cut", cut)
    _checks.choice("decay", decay, DECAYS)
    if decay_steps is not None:
        _checks.integer("decay_steps", decay_steps)
    _checks.positive("decay_ratio", decay_ratio)
    _checks.non_negative("decay_onset", decay_onset)
    _checks.fraction("floor", floor)
    factor = rates.decay(decay, decay_steps, decay_ratio, floor)
    return Phase(
        "execution",
        scale_by_kronecker_fisher() if transform is None else transform,
        rates.times(peak(learning_rate, cut), factor),
        weight_decay,
        mask,
        inherits=transform is None,
        slow_share=slow_share,
        adapt=rates.adapt(decay_steps, decay_ratio, decay_onset) if decay == "adaptive" else None,
    )
