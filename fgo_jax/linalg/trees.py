"""Arithmetic on pytrees that leaves sharded leaves where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def laid_end_to_end(leaves: Sequence[jax.Array], most: int) -> list[jax.Array]:
    """The leaves of more than `most` entries, and behind them all others as one vector.

    A model has many vectors; one by one each costs an operation, whatever its size.
    """
    large = [leaf for leaf in leaves if leaf.size > most]
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size <= most]
    return [*large, jnp.concatenate(small)] if small else large


def vdot(a: Any, b: Any) -> jax.Array:
    """Inner product of two float32 pytrees, leaf by leaf.

    Not `optax.tree.vdot`: as of 0.2.8 it takes JAX 0.10 for a version before 0.7.2 (it
    compares strings) and flattens the leaves, which gathers the sharded ones.
    """

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tensordot(x, y, axes=x.ndim, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.reduce(jnp.add, jax.tree.map(product, a, b), jnp.zeros([], jnp.float32))


def sum_squares(tree: Any) -> jax.Array:
    """Of an array or of all arrays of a pytree, in float32 and leaf by leaf."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return sum(squares[1:], start=squares[0]) if squares else jnp.zeros([], jnp.float32)


def log_norm_ratio(wanted: Any, given: Any) -> jax.Array:
    """log(||wanted|| / ||given||), zero where either is zero."""
    numerator, denominator = sum_squares(wanted), sum_squares(given)
    known = (numerator > 0) & (denominator > 0)
    ratio = jnp.where(known, numerator, 1.0) / jnp.where(known, denominator, 1.0)
    return 0.5 * jnp.log(ratio)
