"""Linear maps of a model over a chosen part of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax.linalg.half import has_half, vector_scale

# A pytree of bools (or a prefix of one), or a function from the parameters to it.
Mask = Any


class Selection(NamedTuple):
    """The leaves that a mask chooses, and maps between them and the whole tree."""

    leaves: list[jax.Array]  # the chosen ones
    merge: Callable[[list[Any]], Any]  # chosen leaves -> parameters, the others unchanged
    chosen_of: Callable[[Any], list[Any]]  # vector -> its chosen leaves
    pick: Callable[[Any], list[Any]]  # the same, in the parameters' dtypes
    expand: Callable[[list[Any]], Any]  # chosen leaves -> vector in float32, zero elsewhere


def select(params: Any, mask: Mask | None) -> Selection:
    """The leaves that the mask chooses; all of them for None."""
    leaves, treedef = jax.tree.flatten(params)
    chosen = [True] * len(leaves) if mask is None else _chosen(params, mask)
    _check_floating(params, chosen)

    def merge(part: list[Any]) -> Any:
        given = iter(part)
        return treedef.unflatten(
            [next(given) if c else leaf for c, leaf in zip(chosen, leaves, strict=True)]
        )

    def chosen_of(vector: Any) -> list[Any]:
        pairs = zip(chosen, treedef.flatten_up_to(vector), strict=True)
        return [jnp.asarray(v) for c, v in pairs if c]

    def pick(vector: Any) -> list[Any]:
        return optax.tree.cast_like(chosen_of(vector), own)

    def expand(part: list[Any]) -> Any:
        given = iter([leaf.astype(jnp.float32) for leaf in part])
        pairs = zip(chosen, leaves, strict=True)
        zeros = [next(given) if c else jnp.zeros(jnp.shape(leaf), jnp.float32) for c, leaf in pairs]
        return treedef.unflatten(zeros)

    own = [leaf for c, leaf in zip(chosen, leaves, strict=True) if c]
    return Selection(own, merge, chosen_of, pick, expand)


def _chosen(params: Any, mask: Mask) -> list[bool]:
    tree = mask(params) if callable(mask) else mask
    # By paths, so that a mask of plain dicts fits parameters in a FrozenDict.
    flags = {_keys(path): flag for path, flag in jax.tree_util.tree_leaves_with_path(tree)}
    for flag in flags.values():
        if not isinstance(flag, (bool, np.bool_)):
            raise ValueError(
                "mask must hold a bool per leaf of the parameters, because a leaf is chosen as "
                f"a whole, got {type(flag).__name__}: pass True or False for each leaf."
            )
    chosen, used = [], set()
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        keys = _keys(path)
        found = [keys[:n] for n in range(len(keys) + 1) if keys[:n] in flags]
        if not found:
            raise ValueError(
                f"mask has no entry for the parameter {'/'.join(keys)!r}: give it True or False, "
                "or give one to a tree above it."
            )
        used.add(found[0])
        chosen.append(bool(flags[found[0]]))
    strangers = sorted("/".join(keys) for keys in set(flags) - used)
    if strangers:
        raise ValueError(
            f"mask has entries for {strangers[:3]}, which are no parameters: make it from the "
            "parameters' own tree."
        )
    if not any(chosen):
        raise ValueError(
            "mask chooses no parameters, so there is no curvature to measure: make it True for at "
            "least one leaf, or pass mask=None for all."
        )
    return chosen


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _check_floating(params: Any, chosen: list[bool]) -> None:
    for (path, leaf), c in zip(jax.tree_util.tree_leaves_with_path(params), chosen, strict=True):
        if c and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"curvature is of floating-point parameters, but {'/'.join(_keys(path))!r} is "
                f"{jnp.result_type(leaf)}: check that params and batch are in this order, and "
                "set other leaves False in mask=."
            )


def _check_outputs(outputs: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = f"its output {'/'.join(_keys(path))!r}" if path else "its output"
            raise ValueError(
                f"curvature is of a model with floating-point outputs, but {name} is "
                f"{leaf.dtype}: return only the outputs that the loss reads, before any rounding."
            )


class Linearised(NamedTuple):
    """A model at given parameters: its outputs, and products with its Jacobian J."""

    outputs: Any
    push: Callable[[Any], Any]  # a vector like the parameters -> J v, in float32
    pull: Callable[[Any], Any]  # a cotangent of the outputs -> J^T c, in float32


def linearise(function: Callable[[Any], Any], params: Any, mask: Mask | None) -> Linearised:
    """Runs the model once for all products; vectors are cast to its precision and back.

    Products are linear, so a vector may be scaled before the cast to float16. Unscaled, a cotangent
    with factors 1/n and p was all zero at 1,000 examples of 4,000 classes.
    """
    selection = select(params, mask)
    outputs, forward = jax.linearize(lambda p: function(selection.merge(p)), selection.leaves)
    _check_outputs(outputs)
    backward = jax.linear_transpose(forward, selection.leaves)

    def push(vector: Any) -> Any:
        return optax.tree.cast(forward(selection.pick(vector)), jnp.float32)

    def pull(cotangent: Any) -> Any:
        (product,) = backward(optax.tree.cast_like(cotangent, outputs))
        return selection.expand(product)

    def scaled_pull(cotangent: Any) -> Any:
        scale = vector_scale(cotangent)
        product = pull(jax.tree.map(lambda c: c.astype(jnp.float32) * scale, cotangent))
        return jax.tree.map(lambda p: p / scale, product)

    is_half = has_half((outputs, selection.leaves))
    return Linearised(outputs, push, scaled_pull if is_half else pull)
