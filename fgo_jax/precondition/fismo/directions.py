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
) -> tuple[jax.Array, jax.Array]:
    """(whitened momentum M, P^-1/2 polar(M) Q^-1/2)."""
    m = beta * first + (1 - beta) * one.between(g, roots)
    u = newton_schulz(m / bias_correction(beta, step), one.whole, coefficients, eps)
    return m, one.between(u, roots)
