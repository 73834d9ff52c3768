"""Arithmetic on pytrees, leaf by leaf, so that sharded leaves stay in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh


def leaf_names(tree: Any) -> list[str]:
    """The leaves' paths, their keys joined by "/".

    Keys may hold a "/" themselves, as Haiku's do. Leaves that would share a name are called by
    their keys in brackets.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    count = Counter(names)
    pairs = zip(names, paths, strict=True)
    return [name if count[name] == 1 else jax.tree_util.keystr(path) for name, path in pairs]


def laid_end_to_end(leaves: Sequence[jax.Array], most: int) -> list[jax.Array]:
    """The leaves of more than `most` entries, then all others as one vector.

    A model has many small vectors, and each separate one costs an operation of its own. A leaf
    that is split over explicit axes cannot be flattened, and stays as it is.
    """
    alone = [leaf.size > most or mesh.is_split(leaf) for leaf in leaves]
    large = [leaf for leaf, is_alone in zip(leaves, alone, strict=True) if is_alone]
    small = [leaf.reshape(-1) for leaf, is_alone in zip(leaves, alone, strict=True) if not is_alone]
    return [*large, jnp.concatenate(small)] if small else large


# Leaves up to this size are summed as one vector.
_SMALL = 256

# XLA's compile time of a concatenation grows faster than the number of parts.
_PARTS = 32


def for_sums(tree: Any) -> list[jax.Array]:
    """The leaves of a tree; on one device the small ones laid end to end, in float32.

    For sums over all leaves; the order changes. Each separate leaf costs a sum, and more inside a
    conditional: with 400 leaves they were a tenth of a step's compilation.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    if any(mesh.number_of_devices(leaf) > 1 for leaf in leaves):
        return leaves
    large = [leaf for leaf in leaves if leaf.size > _SMALL]
    small = [real32(leaf).reshape(-1) for leaf in leaves if leaf.size <= _SMALL]
    if len(small) > _PARTS:
        small = _in_rows(small)
    return [*large, jnp.concatenate(small)] if small else large


def _in_rows(vectors: Sequence[jax.Array]) -> list[jax.Array]:
    """Vectors of one length as one, up to `_PARTS` of them."""
    by_length: dict[int, list[jax.Array]] = {}
    for vector in vectors:
        by_length.setdefault(vector.size, []).append(vector)
    return [
        jnp.stack(same[start : start + _PARTS]).reshape(-1)
        for same in by_length.values()
        for start in range(0, len(same), _PARTS)
    ]


def wide(leaf: jax.Array) -> jax.Array:
    """A leaf in at least float32."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def widened(tree: Any, params: Any) -> Any:
    """The tree in dtypes that hold both its leaves and the parameters; without parameters as it is.

    Gradients may be in half precision where the parameters are in float32. A direction that is
    rounded to the gradients' dtype loses digits, and may overflow.
    """
    if params is None:
        return tree

    def widen(leaf: Any, param: Any) -> Any:
        if leaf is None:
            return None
        return jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.result_type(param)))

    return jax.tree.map(widen, tree, params, is_leaf=lambda x: x is None)


def times(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """leaf * factor in the leaf's dtype, which need not hold the factor."""
    return (wide(leaf) * factor).astype(leaf.dtype)


def real32(leaf: jax.Array) -> jax.Array:
    """The leaf in float32; the two parts of a complex one on one more axis, with the same norm.

    A cast alone would drop the imaginary part.
    """
    parts = jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf
    return parts.astype(jnp.float32)


def leaf_squares(leaf: jax.Array) -> jax.Array:
    """[], float32: the squared norm of one leaf."""
    return jnp.sum(jnp.square(real32(leaf)))


def added_up(numbers: Sequence[jax.Array], shape: tuple[int, ...] = ()) -> jax.Array:
    """The sum of small arrays of one shape, such as one number for each leaf; zero for none.

    It is one reduction. XLA repeats a chain of additions in everything that reads the sum: with 400
    leaves that made a step compile ten times as long.
    """
    if not numbers:
        return jnp.zeros(shape, jnp.float32)
    row = jnp.stack(numbers)
    # XLA turns the sum of a stack back into a chain. The `where` prevents that; no number changes.
    return jnp.sum(jnp.where(jnp.isnan(row), jnp.nan, row), axis=0)


def vdot(a: Any, b: Any) -> jax.Array:
    r"""Inner product of two pytrees in float32, leaf by leaf.

    .. math:: \langle a, b \rangle = \sum_{\text{leaves}} \sum_k a_k b_k

    Args:
      a: a pytree of real arrays of any dtype.
      b: a pytree of the same structure and shapes.

    Returns:
      [], float32, in the product of the two units.

    Raises:
      ValueError: for complex leaves; from JAX, where structures differ.
      TypeError: from JAX, where shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import vdot
      >>> tree = {"w": jnp.array([[1.0, 2.0]]), "b": jnp.array([3.0])}
      >>> float(vdot(tree, tree))
      14.0

    Source: the definition above.
    """
    # Not `optax.tree.vdot`: as of 0.2.8 it compares version strings, takes JAX 0.10 for older
    # than 0.7.2 and flattens the leaves, which gathers sharded ones.
    return added_up(jax.tree.leaves(jax.tree.map(leaf_vdot, a, b)))


def leaf_vdot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner product of two leaves, on every device of their mesh."""
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        raise ValueError(
            "an inner product is of real numbers, got complex ones: pass their parts, as in "
            "[z.real, z.imag]."
        )
    x, y, alone = x.astype(jnp.float32), y.astype(jnp.float32), mesh.replicated(x, 0)
    return jnp.tensordot(x, y, axes=x.ndim, precision="highest", out_sharding=alone)


def sum_squares(tree: Any) -> jax.Array:
    r"""Sum of the squares of all entries of a pytree, in float32.

    .. math:: \|x\|^2 = \sum_{\text{leaves}} \sum_k x_k^2

    Args:
      tree: an array or a pytree of arrays of any dtype; of complex ones the moduli count.

    Returns:
      [], float32, in the unit squared; 0 for a tree without leaves.

    Raises:
      Nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import sum_squares
      >>> float(sum_squares({"w": jnp.array([3, 4]), "b": jnp.array([12.0])}))
      169.0

    Source: the definition above.
    """
    return added_up(list(map(leaf_squares, jax.tree.leaves(tree))))


def log_norm_ratio(wanted: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log(a / b) of norms a and b from their squares, and where both are positive and finite."""
    known = (wanted > 0) & (given > 0) & jnp.isfinite(wanted) & jnp.isfinite(given)
    # By logs: the ratio of two float32 squares may be beyond float32.
    above, below = (jnp.log(jnp.where(known, x, 1.0)) for x in (wanted, given))
    return 0.5 * (above - below), known
