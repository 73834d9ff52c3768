"""What a phase is: a transform, a learning rate and its decay, weight decay, slow momentum."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from fgo_jax import _checks
from fgo_jax.phases.decays import Decay
from fgo_jax.phases.rates import Law


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """A description of a phase, for :func:`fgo_jax.phased`.

    :func:`fgo_jax.acquisition`, :func:`fgo_jax.reask` and :func:`fgo_jax.execution` make the
    three of the protocol. A phase alone is ``fgo.phased([phase], [])``.

    Attributes:
      name: of the phase, for telemetry, :func:`fgo_jax.force_phase` and messages; not empty,
        without a slash, and not that of another phase.
      rate: the learning rate before `decay`, `fgo.decays.Progress -> [], float32`.
      transform: gradients to a direction: a ``scale_by_*`` or a chain of them, with no
        learning rate and no minus sign. None keeps the transform of the phase before; in the
        first phase it is :func:`fgo_jax.scale_by_kronecker_fisher`.
      decay: a factor on the rate, from :mod:`fgo_jax.decays`; None for none.
      weight_decay: decoupled and scaled by the effective rate, as in `optax.adamw`.
      mask: which leaves decay, as in `optax.adamw`.
      slow_share: share of :func:`fgo_jax.slow_momentum` in the direction, in [0, 1); None for
        none.

    Raises:
      ValueError: for numbers out of range, an empty name, a wrong transform, or an
        adaptive decay without a slow momentum.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import fgo_jax as fgo
      >>> adam = optax.scale_by_adam()
      >>> constant = fgo.Phase("constant", lambda progress: jnp.float32(1e-3), adam)
      >>> tx = fgo.phased([constant, fgo.execution(1e-3, cut=0.0)], [fgo.triggers.after(1000)])

    Source: Friction-Guided Optimization (2026), section 4.
    """

    name: str
    rate: Law
    transform: optax.GradientTransformation | None = None
    decay: Decay | None = None
    weight_decay: Any = 0.0
    mask: Any = None
    slow_share: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ValueError(
                f"a phase needs a name without a slash, such as 'polish', got {self.name!r}."
            )
        _checks.non_negative("weight_decay", self.weight_decay)
        if self.slow_share is not None:
            _checks.fraction("slow_share", self.slow_share)
        if self.decay is not None and not isinstance(self.decay, Decay):
            raise ValueError(
                f"the decay of phase {self.name!r} must come from fgo.decays, such as "
                f"fgo.decays.cosine(1000), got {self.decay!r}."
            )
        if self.is_adaptive and _checks.is_off(self.slow_share):
            raise ValueError(
                f"phase {self.name!r}: an adaptive decay follows the slow momentum. Give a "
                "positive slow_share, or another decay such as fgo.decays.hyperbolic()."
            )
        if self.transform is not None and not isinstance(
            self.transform, optax.GradientTransformation
        ):
            raise ValueError(
                f"the transform of phase {self.name!r} must be an optax.GradientTransformation "
                f"such as optax.scale_by_adam(), got {type(self.transform).__name__}."
            )

    @property
    def is_adaptive(self) -> bool:
        """Whether the decay follows the measured energy of the slow momentum."""
        return self.decay is not None and self.decay.exponent is not None
