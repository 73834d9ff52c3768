"""Refuses transforms that apply a learning rate already: a second minus sign climbs the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax import core

from fgo_jax.controller.state import FgoState
from fgo_jax.controller.trial import SIZES, directions, numbers
from fgo_jax.phases.phase import Phase


def check_directions(phases: Sequence[Phase]) -> None:
    """Raises a ValueError for a phase whose transform points against the gradient.

    Each distinct transform makes a few steps on six numbers. One that needs a model, extra
    arguments or traced numbers cannot be tried so and passes.
    """
    tried = []
    for phase in phases:
        transform = phase.transform
        # A transform with a metric is one of this library's directions.
        if transform is None or getattr(transform, "metric", None) or transform in tried:
            continue
        tried.append(transform)
        try:
            with jax.ensure_compile_time_eval():
                uphill = _points_uphill(transform)
        except Exception:  # Real use raises its own error.
            continue
        if uphill:
            raise ValueError(
                f"the transform of phase {phase.name!r} points against the gradient: it has a "
                "learning rate or a minus sign already. The phase applies the learning rate, so "
                "training would climb the loss. Pass the direction alone: optax.scale_by_adam() "
                "instead of optax.adam(...), optax.contrib.scale_by_muon() instead of muon, "
                "optax.identity() instead of optax.sgd(...), and never a whole optimizer of "
                "phases."
            )


def _points_uphill(transform: optax.GradientTransformation) -> bool:
    state = transform.init(numbers())
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, FgoState))
    if any(isinstance(leaf, FgoState) for leaf in leaves):
        return True
    for grads, direction in directions(transform, SIZES[0]):
        along: Any = optax.tree.vdot(direction, grads)
        if isinstance(along, core.Tracer):
            return False
        if along < 0:
            return True
    return False
