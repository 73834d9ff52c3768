"""Leaves of a gradient: which a transformation takes, and what it makes of bad numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def f32(x: Any) -> Any:
    """A Python number as it is; an injected hyperparameter of any dtype in float32."""
    return x if isinstance(x, (int, float)) else jnp.asarray(x, jnp.float32)


def check_floating(name: str, leaves: list[Any]) -> None:
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{name} does not take complex leaves ({dtype}): wrap it in "
                "optax.contrib.split_real_and_imaginary."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} takes floating-point leaves, got {dtype}: exclude the others with "
                "optax.masked."
            )


def finite_leaves(leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    """Leaves in float32, those that are not finite as zeros; and which are finite, bool []."""
    wide = [jnp.asarray(leaf, jnp.float32) for leaf in leaves]
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in wide]
    return [jnp.where(ok, leaf, 0.0) for ok, leaf in zip(finite, wide, strict=True)], finite
