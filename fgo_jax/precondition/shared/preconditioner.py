"""A gradient transformation that can say what its metric does to a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax


class Preconditioner(optax.GradientTransformationExtraArgs):
    """A gradient transformation with `metric(grads, state) -> grads`.

    `metric` applies P^-1/2, where P^-1 is what the transformation multiplies a
    gradient with, at the statistics held in `state`; it changes no state. A probe
    that reads these rows measures the gradient covariance in the metric of the
    running phase, P^-1/2 C P^-1/2.

    Attributes:
      metric: see above.
      keeps_scale: whether a learning rate means what it means for Adam, because the
        updates do not shrink with the gradients. Where it does not, a hand-over's graft
        stays instead of fading.
    """

    metric: Callable[[Any, Any], Any]
    keeps_scale: bool

    def __new__(cls, init, update, metric, keeps_scale=True):
        self = super().__new__(cls, init, update)
        self.metric = metric
        self.keeps_scale = keeps_scale
        return self
