"""Leaves of a gradient: which ones a transformation takes, and how their averages move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.precondition.shared.modes import Modes


def f32(x: Any) -> Any:
    """None or a Python number as it is; an injected hyperparameter of any dtype in float32."""
    return x if x is None or isinstance(x, (int, float)) else jnp.asarray(x, jnp.float32)


def called(given: Any, tree: Any, is_leaf: Any = None) -> Any:
    """A tree such as a mask, or the result of a function of the parameters.

    Some trees are callable too, such as modules with a `__call__`. They count as trees if their
    structure fits.
    """
    if not callable(given):
        return given
    if not jax.tree_util.all_leaves([given], is_leaf):
        try:
            jax.tree.map(lambda *_: 0, given, tree, is_leaf=is_leaf)
        except (ValueError, TypeError):
            pass
        else:
            return given
    return given(tree)


def check_floating(name: str, leaves: list[Any]) -> None:
    for leaf in leaves:
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{name} does not take complex leaves ({dtype}): wrap it in "
                "optax.contrib.split_real_and_imaginary. An average of the weights goes outside of "
                "it, as in optax.chain(split_real_and_imaginary(optimizer), "
                "fgo.average_weights(0.1))."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} takes floating-point leaves, got {dtype}: exclude the others with "
                "optax.masked."
            )


def usable(leaf: Any, modes: Modes | None = None) -> tuple[jax.Array, jax.Array]:
    """A gradient in float32, zero where it cannot be squared; and whether it can, by matrix.

    A sum of squares beyond float32, 3e38, would make statistics infinite forever. So it counts
    like a non-finite entry. The sum is one fast vectorised pass.
    """
    g = jnp.asarray(leaf, jnp.float32)
    square = jnp.sum(g * g) if modes is None else modes.reduce(jnp.sum, g * g)
    good = jnp.isfinite(square)
    return jnp.where(good, g, 0.0), good


def usable_leaves(
    leaves: Sequence[Any], modes: Sequence[Modes | None] | None = None
) -> tuple[list[jax.Array], list[jax.Array]]:
    """`usable` of each leaf: all gradients, then whether each is usable."""
    pairs = [usable(*pair) for pair in zip(leaves, modes or [None] * len(leaves), strict=True)]
    return [g for g, _ in pairs], [good for _, good in pairs]


def given_back(update: jax.Array, good: Any, gradient: Any) -> jax.Array:
    """An update in its gradient's dtype; zero where not `good`, or where that dtype cannot hold it.

    float16 ends at 65,504.
    """
    given = update.astype(jnp.result_type(gradient))
    if given.dtype != update.dtype:
        good = good & jnp.isfinite(given)
    return jnp.where(good, given, jnp.zeros_like(given))


def bias_correction(decay: Any, step: jax.Array) -> Any:
    """1 - decay^step: the weights that a moving average has gathered after `step` updates."""
    # `decay**step` is the same program, but ten times as long to trace, for every leaf.
    return 1 - jax.lax.pow(jnp.asarray(decay, jnp.float32), step.astype(jnp.float32))


def held(decay: Any, step: jax.Array) -> Any:
    """The factor that keeps a bias-corrected average as it is at a step that adds nothing to it."""
    before = bias_correction(decay, step - 1)
    return jnp.where(before > 0, bias_correction(decay, step) / jnp.where(before > 0, before, 1), 1)


def empty_field() -> jax.Array:
    """The value of a field that goes leaf by leaf, for a tree without leaves.

    `optax.tree.map_params` calls `init` on such a tree to find the fields that are shaped like the
    parameters. In all other fields it takes a single array, and no empty tuple. Orbax, which saves
    the state of a part of `optax.partition` that has no leaves, takes no array without entries.
    """
    return jnp.zeros([], jnp.float32)
