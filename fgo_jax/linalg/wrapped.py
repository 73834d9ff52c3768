"""Trees whose arrays are wrapped, as in the variables of `flax.nnx`."""

from __future__ import annotations

from typing import Any

import jax


def unwrapped(tree: Any) -> Any:
    """The tree with arrays in place of variables; other trees as they are."""
    return jax.tree.map(
        lambda node: node.get_value() if _is_variable(node) else node, tree, is_leaf=_is_variable
    )


def wrapped_like(tree: Any, like: Any) -> Any:
    """The arrays of `tree` in the containers and boxes of `like`, which has as many."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def _is_variable(node: Any) -> bool:
    # By its methods: flax is not a dependency.
    return hasattr(type(node), "get_value") and hasattr(type(node), "set_value")
