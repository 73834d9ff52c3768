"""Finding the state of an optimizer of phases inside any optax state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fgo_jax.controller.state import FgoState
from fgo_jax.linalg.wrapped import unwrapped, wrapped_like


def states_in(opt_state: Any) -> dict[str, FgoState]:
    """Every FgoState in a tree, by its path; with arrays, also under `nnx.Optimizer`."""
    found, _ = jax.tree_util.tree_flatten_with_path(
        opt_state, is_leaf=lambda node: isinstance(node, FgoState)
    )
    states = {
        # Without brackets and quotes, which log writers replace in their tags.
        jax.tree_util.keystr(path, simple=True, separator="/"): unwrapped(node)
        for path, node in found
        if isinstance(node, FgoState)
    }
    if not states:
        raise ValueError(
            "the state holds no FgoState: pass the optimizer state of fgo.target_acquisition or "
            "fgo.phased, wrapped as you like."
        )
    return states


def mapped(function: Callable[[FgoState], FgoState], opt_state: Any) -> Any:
    """The tree with each FgoState mapped; variables of `flax.nnx` stay variables."""
    states_in(opt_state)
    return mapped_nodes(FgoState, function, opt_state)


def mapped_nodes(kind: type, function: Callable[[Any], Any], opt_state: Any) -> Any:
    """The tree with each node of a kind mapped, if there is any."""
    return jax.tree.map(
        lambda node: (
            wrapped_like(function(unwrapped(node)), node) if isinstance(node, kind) else node
        ),
        opt_state,
        is_leaf=lambda node: isinstance(node, kind),
    )
