"""Momentum and direction: orthogonalised for matrices, Adam's for other leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.precondition.fismo.matrices import Matrices, Pair
from fgo_jax.precondition.shared.leaves import bias_correction
from fgo_jax.precondition.shared.matrix_view import newton_schulz


def adam(
    g: jax.Array, first: Any, second: Any, step: jax.Array, b1: Any, b2: Any, eps: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(first moment, second moment, direction) of `optax.scale_by_adam`."""
    m = b1 * first + (1 - b1) * g
    v = b2 * second + (1 - b2) * jnp.square(g)
    size = jnp.sqrt(v / bias_correction(b2, step)) + eps
    return m, v, m / bias_correction(b1, step) / size


def orthogonalised(
    g: jax.Array,
    first: jax.Array,
    roots: Pair,
    one: Matrices,
    step: jax.Array,
    beta: Any,
    coefficients: Sequence[Sequence[Any]],
    eps: Any,
    coupled: bool,
) -> tuple[jax.Array, jax.Array]:
    """(momentum M of whitened gradients, P^-a polar(M) Q^-a) if coupled.

    If not, M is of raw gradients, and P^-a polar(P^-a M Q^-a) Q^-a has the norm of its polar(.).
    """
    m = beta * first + (1 - beta) * (one.between(g, roots) if coupled else g)
    u = m / bias_correction(beta, step)
    polar = newton_schulz(u if coupled else one.between(u, roots), one.whole, coefficients, eps)
    u = one.between(polar, roots)
    if not coupled:
        wanted, given = (one.whole.reduce(jnp.sum, jnp.square(x)) for x in (polar, u))
        u = u * jnp.sqrt(wanted / jnp.where(given > 0, given, 1.0))
    return m, u
