"""Weighted means over the examples of a batch, and where the batch holds the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# A key or an index of the batch, or a function of it.
Select = str | int | Callable[[Any], Any]


def check_select(name: str, select: Any) -> None:
    """Raises for anything but a key, an index or a function."""
    if not (callable(select) or (isinstance(select, (str, int)) and not isinstance(select, bool))):
        raise ValueError(
            f"{name} must be a key or an index of the batch, or a function of it, got "
            f"{type(select).__name__}: put the array into the batch and pass its key."
        )


def pick(name: str, select: Select, batch: Any) -> Any:
    """The array that `select` finds in the batch."""
    if callable(select):
        return select(batch)
    try:
        return batch[select]
    except (KeyError, IndexError, TypeError) as error:
        held = f"keys {list(batch)}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise ValueError(
            f"{name}={select!r} is not in the batch, which has {held}: pass the key or the index "
            f"that holds them, or a function batch -> {name}."
        ) from error


def mean_and_weights(
    losses: jax.Array, weights: Select | None, batch: Any
) -> tuple[jax.Array, jax.Array]:
    """The mean of the losses, and the share of each in it; both float32.

    With weights it is sum w l / sum w, so a 0/1 mask gives the mean over what it keeps. If all
    weights are zero the mean is zero, not NaN: a batch of padding has no curvature.
    """
    losses = jnp.asarray(losses).astype(jnp.float32)
    if weights is None:
        return jnp.mean(losses), jnp.full(losses.shape, 1.0 / max(losses.size, 1), jnp.float32)
    found = jnp.asarray(pick("weights", weights, batch), jnp.float32)
    if not losses.ndim:
        raise ValueError(
            "weights need one loss per example, got a scalar loss: return the losses before "
            "their mean, or pass weights=None and weight them in the function."
        )
    if found.shape != losses.shape:
        raise ValueError(
            f"weights must have the shape {losses.shape} of the examples' losses, got "
            f"{found.shape}: broadcast them to one weight per loss."
        )
    shares = found / safe_total(jnp.sum(found))
    return jnp.sum(shares * losses), shares


def safe_total(total: jax.Array) -> jax.Array:
    """A sum of weights to divide by: 1 in place of 0."""
    return jnp.where(total > 0.0, total, 1.0)
