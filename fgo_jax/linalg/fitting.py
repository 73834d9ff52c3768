"""Whether a tree fits another one: the same leaves, of the same shapes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

_ADVICE = {
    "gradient": "pass gradients of the parameters that the state was made for (tx.init), or make a "
    "new state.",
    "parameter": "pass the parameters that the state was made for (tx.init), of an nnx model "
    "nnx.state(model, nnx.Param), or make a new state.",
}


def check_fits(name: str, given: Any, owner: str, kept: Any) -> None:
    """Raises where a tree has other leaves or shapes than one that it is combined with.

    Another shape might broadcast, and change the model.

    Args:
      name: what a leaf of `given` is, "gradient" or "parameter".
      given: a tree of these. A gradient may be None, if the caller takes that.
      owner: what `kept` is, in words.
      kept: the other tree; where it holds an `optax.MaskedNode`, anything may be given.
    """
    if _alike(given, kept):  # sooner known than paths, where an update runs op by op
        return
    advice = _ADVICE[name]
    here, there = _shapes(given, lambda node: node is None), _shapes(kept, _is_masked)
    for path, shape in there.items():
        if shape is not None and path not in here:
            at = path or "the top"
            raise ValueError(f"there is no {name} at {at}, but a leaf in {owner}: {advice}")
        if shape is not None and here[path] not in (None, shape):
            raise ValueError(
                f"the {name}{path} has the shape {here[path]}, but {owner} there {shape}: {advice}"
            )
    masked = [path for path, shape in there.items() if shape is None]
    free = tuple(path + inside for path in masked for inside in "[.")
    for path, shape in here.items():
        if shape is not None and path not in there and not path.startswith(free):
            at = path or "the top"
            raise ValueError(f"there is a {name} at {at}, but no leaf in {owner}: {advice}")
    try:
        jax.tree.map(lambda *_: None, kept, given, is_leaf=_is_masked)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the {name}s are in other containers than {owner}, such as a list in place of a "
            f"tuple: {advice}"
        ) from error


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf by its path."""
    return _shapes(tree, None)


def _shapes(tree: Any, is_leaf: Any) -> dict[str, Any]:
    """None for a node that `is_leaf` says is one, and that is no array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf)
    return {
        jax.tree_util.keystr(path): None if leaf is None or _is_masked(leaf) else jnp.shape(leaf)
        for path, leaf in leaves
    }


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _alike(given: Any, kept: Any) -> bool:
    (here, form), (there, other) = jax.tree.flatten(given), jax.tree.flatten(kept)
    return form == other and list(map(jnp.shape, here)) == list(map(jnp.shape, there))
