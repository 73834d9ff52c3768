"""The second moment in the eigenbasis, and the denominator P that is made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.precondition.kronecker.eigenbasis import Factors
from fgo_jax.precondition.shared.leaves import bias_correction
from fgo_jax.precondition.shared.modes import Modes


class Denominator(NamedTuple):
    """The options that turn a second moment V into P; see `scale_by_kronecker_fisher`."""

    b2: Any
    eps: Any
    power: float
    centred: bool
    damping: Any  # of leaves with a factor, relative to the mean of V
    damping_without: Any  # of leaves without one

    def __call__(self, v: Any, eigenvalues: Factors, step: jax.Array, modes: Modes) -> jax.Array:
        """P in the shape of the leaf, from V or, where there are any, the factors' eigenvalues."""
        v = factored(eigenvalues, modes) if eigenvalues else v / bias_correction(self.b2, step)
        relative = self.damping if modes.groups else self.damping_without
        if self.power != 0.5:
            # The mean of an inverse variance estimated from t samples is infinite for t <= 2
            # (chi-squared). So the estimate is drawn towards its mean with the weight of a sample.
            relative = jnp.maximum(relative, 1 / step.astype(jnp.float32))
        elif modes.groups:
            # A single gradient is diagonal in its own eigenbasis. The other entries are rounding
            # errors, which a division by their own size would raise to one.
            relative = jnp.where(step == 1, jnp.maximum(relative, 1.0), relative)
        v = v + relative * modes.reduce(jnp.mean, v)
        if self.centred:
            return (v + self.eps**2) ** self.power
        if self.power == 0.5:
            return jnp.sqrt(v) + self.eps
        v = v + self.eps**2
        return v**self.power * jnp.sqrt(modes.reduce(jnp.mean, v ** (1 - 2 * self.power)))


def factored(eigenvalues: Factors, modes: Modes) -> jax.Array:
    """The second moment that the factors' eigenvalues imply.

    It is the product of one eigenvalue per mode, divided by tr(L)^(modes - 1) (all modes have the
    same trace), and spread evenly over the axes without a factor.
    """
    trace = jnp.sum(eigenvalues[0], axis=-1, keepdims=True)
    share = 1.0 / jnp.where(trace > 0, trace, 1.0)
    moment = modes.along(jnp.broadcast_to(trace, eigenvalues[0].shape), 0)
    for k, values in enumerate(eigenvalues):
        moment = moment * modes.along(values * share, k)
    inside = {axis for group in modes.groups for axis in group}
    outside = math.prod(modes.shape[a] for a in modes.unbatched if a not in inside)
    return jnp.broadcast_to(moment / outside, modes.shape)


def scaled_noise(
    gradients: Sequence[jax.Array], previous: Sequence[jax.Array], modes: Sequence[Modes]
) -> list[jax.Array]:
    """D / rms(D) of each leaf, D the difference of successive gradients; zero stays zero."""
    rows = [g - before for g, before in zip(gradients, previous, strict=True)]
    squares = [
        m.reduce(jnp.mean, jnp.square(row)) if row.size else jnp.ones(())
        for row, m in zip(rows, modes, strict=True)
    ]
    return [
        row * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
        for row, square in zip(rows, squares, strict=True)
    ]
