"""Leaves of a gradient: which ones a transformation takes, and how their averages move."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def f32(x: Any) -> Any:
    """None or a Python number as it is; an injected hyperparameter of any dtype in float32."""
    return x if x is None or isinstance(x, (int, float)) else jnp.asarray(x, jnp.float32)


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
    """Leaves in float32, zero where not finite as a whole; and whether each is finite, bool []."""
    wide = [jnp.asarray(leaf, jnp.float32) for leaf in leaves]
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in wide]
    return [jnp.where(ok, leaf, 0.0) for ok, leaf in zip(finite, wide, strict=True)], finite


def bias_correction(decay: Any, step: jax.Array) -> Any:
    """1 - decay^step: the weights that a moving average has gathered after `step` updates."""
    return 1 - decay ** step.astype(jnp.float32)


def empty_field() -> jax.Array:
    """The value of a field that goes leaf by leaf, for a tree without leaves.

    `optax.tree.map_params` calls `init` on such a tree to find the fields that are shaped like the
    parameters. In all other fields it takes a single array, and no empty tuple.
    """
    return jnp.zeros((0,), jnp.float32)
