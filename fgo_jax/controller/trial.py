"""Runs a transform for a few steps on six numbers, to inspect its directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import core

STEPS = 3  # the first rate of a schedule may be zero
# Sizes of the gradients' entries. At 1e3, noise that a transform adds is negligible; at 1e-3, no
# norm is clipped; at 1, noise and clipping may both matter.
SIZES = (1e3, 1.0, 1e-3)


def numbers(size: float = 1.0) -> Any:
    """The parameters of a trial, or its gradients."""
    return {"matrix": jnp.full((2, 2), size, "f4"), "vector": jnp.full(2, size, "f4")}


def directions(transform: optax.GradientTransformation, size: float) -> Iterator[tuple[Any, Any]]:
    """Gradients with entries of a size, and the transform's direction for them, step by step."""
    params, grads = numbers(), numbers(size)
    state = transform.init(params)
    update = optax.with_extra_args_support(transform).update
    for _ in range(STEPS):
        direction, state = update(grads, state, params)
        yield grads, direction


def keeps_scale(transform: optax.GradientTransformation) -> bool:
    """Whether a transform's updates keep their size while gradients shrink, as Adam's do.

    What the transform says of itself counts. Otherwise it is tried; one that needs a model,
    extra arguments or traced numbers cannot be, and is taken to be like Adam.
    """
    declared = getattr(transform, "keeps_scale", None)
    if declared is not None:
        return bool(declared)
    try:
        with jax.ensure_compile_time_eval():
            norms = [_last_norm(transform, size) for size in SIZES]
    except Exception:  # Real use raises its own error.
        return True
    if any(isinstance(norm, core.Tracer) for norm in norms):
        return True
    # Bound: halfway, in logs, between constant and proportionally smaller updates.
    shrinks = [
        float(lower) < float(upper) * (small / large) ** 0.5
        for upper, lower, large, small in zip(norms, norms[1:], SIZES, SIZES[1:], strict=False)
    ]
    return not any(shrinks)


def _last_norm(transform: optax.GradientTransformation, size: float) -> Any:
    *_, (_, direction) = directions(transform, size)
    return optax.tree.norm(direction)
