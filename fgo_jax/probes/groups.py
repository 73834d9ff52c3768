"""Parts of the parameter tree that are measured separately, such as layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from fgo_jax import _checks
from fgo_jax.linalg.trees import leaf_names

# From the path of a leaf to the name of its group, as `layer_groups` makes it. A leaf may be
# in no group.
Groups = Mapping[str, str]


def layer_groups(params: Any, by: int | Callable[[str], str | None] = 1) -> dict[str, str]:
    """Names the group of every parameter, for the ``groups=`` of a probe.

    The result is a table, not a function, because the names of signals such as
    ``"trace/Dense_0"`` must be known before training starts: triggers read signals by name.

    Args:
      params: the parameters, or their `jax.ShapeDtypeStruct`s.
      by: how many leading keys of a path make the name of its group. Or a function from the
        path (its keys joined by "/") to a name, or to None for a leaf in no group.

    Returns:
      A dict from paths to names.

    Raises:
      ValueError: where ``by`` is neither a positive integer nor a function, or no leaf is in
        a group.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
      >>> fgo.probes.layer_groups(params)
      {'Dense_0/bias': 'Dense_0', 'Dense_0/kernel': 'Dense_0'}
      >>> fgo.probes.layer_groups(params, lambda path: "kernels" if "kernel" in path else None)
      {'Dense_0/kernel': 'kernels'}

    Source: the definition above.
    """
    if not callable(by):
        _checks.positive_int("by", by)
    table = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (keys, _), path in zip(leaves, leaf_names(params), strict=True):
        if callable(by):
            name = by(path)
        else:
            name = jax.tree_util.keystr(keys[:by], simple=True, separator="/")
        if name is not None:
            table[path] = name
    if not table:
        raise ValueError(
            "no parameter is in a group: let by= return a name for some path, such as "
            f"{leaf_names(params)[:3]}."
        )
    return table


def check_groups(groups: Groups | None) -> tuple[str, ...]:
    """The groups' names in order of appearance, () for None."""
    if groups is None:
        return ()
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(
            "groups must map the paths of parameters to names: pass "
            "fgo.probes.layer_groups(params), or None for no groups."
        )
    return tuple(dict.fromkeys(groups.values()))


def counter(state: Any, signal: str, *, names: tuple[str, ...]) -> jax.Array:
    """[], int32; it grows when this signal is measured. A held dimension does not count.

    A held noise scale does: its error becomes infinite.

    Args:
      state: of a probe, with `evaluations` and, for each of `slots`, `new_dimensions`.
      signal: of the probe; that of a group is called SIGNAL/GROUP.
      names: of the groups.
    """
    kind, _, group = signal.partition("/")
    if kind != "intrinsic_dimension":
        return state.evaluations
    return state.new_dimensions[1 + names.index(group) if group else 0]


def slots(groups: Groups | None, tree: Any) -> list[tuple[int, ...]]:
    """The indices of the leaves of the whole tree, then of each group."""
    paths = leaf_names(tree)
    everything = [tuple(range(len(paths)))]
    if groups is None:
        return everything
    strangers = sorted(set(groups) - set(paths))
    if strangers:
        raise ValueError(
            f"groups names {strangers[:3]}, but the parameters are {paths[:3]} and so on: pass "
            "fgo.probes.layer_groups of the very parameters that are trained."
        )
    return everything + [
        tuple(index for index, path in enumerate(paths) if groups.get(path) == name)
        for name in check_groups(groups)
    ]
