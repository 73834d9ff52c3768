"""The second moment in the eigenbasis, and the denominator P that is made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.precondition.kronecker.eigenbasis import Factors
from fgo_jax.precondition.shared.leaves import bias_correction
from fgo_jax.precondition.shared.modes import Modes


class Denominator(NamedTuple):
    """The options that turn a second moment V into P; see `scale_by_kronecker_fisher`."""

    b2: Any
    factor_decay: Any
    eps: Any
    power: float
    centred: bool
    damping: Any  # of leaves with a factor, relative to the mean of V
    damping_without: Any  # of leaves without one

    def __call__(
        self, v: Any, eigenvalues: Factors, factors: Factors, step: jax.Array, modes: Modes
    ) -> jax.Array:
        """P in the shape of the leaf, from V or, where there are any, the factors' eigenvalues."""
        if eigenvalues:
            trace = jnp.trace(factors[0].astype(jnp.float32), axis1=-2, axis2=-1)
            trace = trace / bias_correction(self.factor_decay, step)
            v = factored(eigenvalues, modes) + growth(trace, eigenvalues, modes)
        else:
            v = v / bias_correction(self.b2, step)
        relative = self.damping if modes.groups else self.damping_without
        if self.power != 0.5 or eigenvalues:
            # The mean of an inverse variance estimated from t samples is infinite for t <= 2
            # (chi-squared). So the estimate is drawn towards its mean with the weight of a sample.
            # Eigenvalues need it at power 1/2 too: they stay between refreshes, and those of the
            # first gradients are zero in most directions.
            relative = jnp.maximum(relative, 1 / step.astype(jnp.float32))
        elif modes.groups:
            # A single gradient is diagonal in its own eigenbasis. The other entries are rounding
            # errors, which a division by their own size would raise to one.
            relative = jnp.where(step == 1, jnp.maximum(relative, 1.0), relative)
        if not _checks.is_zero(relative):
            v = v + relative * modes.reduce(jnp.mean, v)
        if self.centred:
            return (v + self.eps**2) ** self.power
        if self.power == 0.5:
            return jnp.sqrt(v) + self.eps
        v = v + self.eps**2
        return v**self.power * jnp.sqrt(modes.reduce(jnp.mean, v ** (1 - 2 * self.power)))

    def is_unknown(self, p: jax.Array) -> jax.Array:
        """Where P is that of V = 0, which holds everywhere before the first gradient."""
        least = self.eps ** (2 * self.power) if self.centred else self.eps
        return p <= least * (1 + 1e-3)  # up to the rounding of powers


def factored(eigenvalues: Factors, modes: Modes) -> jax.Array:
    """The second moment that the factors' eigenvalues imply.

    It is the product of one eigenvalue per mode, divided by tr(L)^(modes - 1) (all modes have the
    same trace), and spread evenly over the axes without a factor.
    """
    trace = jnp.sum(eigenvalues[0], axis=-1, keepdims=True)
    share = 1.0 / jnp.where(trace > 0, trace, 1.0)
    moment = _spread(trace[..., 0], eigenvalues, modes)
    for k, values in enumerate(eigenvalues):
        moment = moment * modes.along(values * share, k)
    inside = {axis for group in modes.groups for axis in group}
    outside = math.prod(modes.shape[a] for a in modes.unbatched if a not in inside)
    return jnp.broadcast_to(moment / outside, modes.shape)


def growth(trace: jax.Array, eigenvalues: Factors, modes: Modes) -> jax.Array:
    """How far the trace of the factors has outgrown their eigenvalues, per entry of the leaf.

    It is zero up to twice the trace of the last refresh, so ordinary noise adds nothing. Above that
    the direction of the growth is unknown, so all entries get the same share.
    """
    excess = jnp.maximum(trace - 2 * jnp.sum(eigenvalues[0], axis=-1), 0.0)
    return _spread(excess / math.prod(modes.shape[a] for a in modes.unbatched), eigenvalues, modes)


def _spread(numbers: jax.Array, eigenvalues: Factors, modes: Modes) -> jax.Array:
    """A number for each matrix of a batch, in a shape that broadcasts against the leaf."""
    return modes.along(jnp.broadcast_to(numbers[..., None], eigenvalues[0].shape), 0)


def scaled_noise(
    gradients: Sequence[jax.Array],
    previous: Sequence[jax.Array],
    modes: Sequence[Modes],
    good: Sequence[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """D / rms(D) of each leaf, D the difference of successive gradients; and whether there is one.

    Zero stays zero, and is no observation.
    """
    rows = [g - before for g, before in zip(gradients, previous, strict=True)]
    squares = [
        m.reduce(jnp.mean, jnp.square(row)) if row.size else jnp.ones(())
        for row, m in zip(rows, modes, strict=True)
    ]
    noise = [
        row * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
        for row, square in zip(rows, squares, strict=True)
    ]
    return noise, [ok & (square > 0) for ok, square in zip(good, squares, strict=True)]
