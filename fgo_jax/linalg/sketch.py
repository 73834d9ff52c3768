"""CountSketch of a pytree that neither reshapes nor gathers a large leaf."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh
from fgo_jax.linalg.hashes import mixed, positions
from fgo_jax.linalg.trees import laid_end_to_end, real32

# Leaves up to this many sketch widths are laid end to end.
_SMALL = 4


def sketch_tree(tree: Any, seed: jax.Array, width: int) -> jax.Array:
    r"""Two independent sketches of a pytree, with unbiased inner products.

    .. math:: (Sx)_j = \sum_{k:\, h(k) = j} s_k x_k,
              \qquad E \langle Sx, Sy \rangle = \langle x, y \rangle

    Every entry k gets a random sign :math:`s_k`, a hash of the seed and of its position in
    the tree, and is added to one of ``width`` buckets. The mean is over the signs and holds
    for any buckets. Only trees sketched with the same seed can be compared.

    The buckets of a leaf are products of one residue class per axis, so bucketing is a
    product with a small 0/1 matrix along each axis. A sharded leaf is therefore reduced in
    place, and only ``width`` numbers travel. Leaves of at most ``4 * width`` entries are laid
    end to end instead: the many vectors of a model then cost a few operations together.

    Args:
      tree: arrays of any shape; the two parts of a complex entry count as two entries.
      seed: [], uint32.
      width: entries of a sketch.

    Returns:
      [2, width], float32, in the unit of the tree.

    Raises:
      Nothing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fgo_jax.linalg import sketch_tree
      >>> x = {"w": jax.random.normal(jax.random.key(0), (100, 80))}
      >>> first, second = sketch_tree(x, jnp.uint32(1), width=1024)
      >>> ratio = jnp.vdot(first, first) / jnp.sum(x["w"] ** 2)  # squared lengths
      >>> bool(abs(ratio - 1) < 0.2)
      True

    Source: Charikar, Chen and Farach-Colton (2002), with the hash computed from the position
    instead of stored.
    """
    return sketch_parts(tree, seed, width, [range(len(jax.tree.leaves(tree)))])[0]


def sketch_parts(
    tree: Any, seed: jax.Array, width: int, parts: Sequence[Iterable[int]]
) -> list[jax.Array]:
    """The terms [2, width] of `sketch_tree` from disjoint sets of leaves, which sum up to it."""
    leaves = jax.tree.leaves(tree)
    # Positions run through all leaves, so no two entries hash the same input.
    key = mixed(seed + jnp.uint32(0x9E3779B9))
    hashed = laid = 0
    sketches = []
    for part in parts:
        most = _SMALL * width
        chosen = [real32(leaves[i]) for i in part if leaves[i].size]
        chosen = [x if x.size > most else mesh.everywhere(x) for x in chosen]
        large = sum(leaf.size > most for leaf in chosen)
        buckets = []
        for index, piece in enumerate(laid_end_to_end(chosen, most)):
            signed = _signed(piece, key, hashed)
            hashed += piece.size
            # Leaves laid end to end are not reduced by axis: `_fold` puts them into buckets.
            buckets.append(_bucket(signed, width) if index < large else signed)
        row = jnp.concatenate([jnp.zeros([2, 0], jnp.float32), *buckets], axis=1)
        sketches.append(_fold(row, width, laid))
        laid += row.shape[1]
    return sketches


def _signed(values: jax.Array, key: jax.Array, first: int) -> jax.Array:
    """[2, *shape]: the values under two sets of random signs."""
    bits = mixed(positions(values.shape, first) + key)[None]
    which = jax.lax.broadcasted_iota(jnp.uint32, (2, *values.shape), 0)
    return jnp.where((bits >> which) & 1 == 1, values[None], -values[None])


def _bucket(values: jax.Array, width: int) -> jax.Array:
    """Sums the entries of a leaf, [2, *shape], into [2, at most width] buckets."""
    shape = values.shape[1:]
    buckets = list(shape)
    while math.prod(buckets) > width:
        widest = max(range(len(buckets)), key=buckets.__getitem__)
        buckets[widest] = (buckets[widest] + 1) // 2
    if len(shape) == 1:
        # The 0/1 matrix of a vector would have as many entries as sketch times vector.
        return _fold(mesh.everywhere(values), buckets[0], 0)
    shrinks = [b < n for b, n in zip(buckets, shape, strict=True)]
    # The last axis first: its memory layout suits a product best. But axes that a mesh splits come
    # after the others, so that devices add up small sums.
    backwards = [axis for axis in range(len(shape), 0, -1) if shrinks[axis - 1]]
    places = list(range(len(shape) + 1))  # the axis of the leaf that each axis of `values` was
    for which in sorted(backwards, key=lambda axis: mesh.splits(values, axis)):
        axis, classes = places.index(which), buckets[which - 1]
        member = (jnp.arange(shape[which - 1]) % classes)[:, None] == jnp.arange(classes)[None]
        values = jnp.tensordot(
            values,
            member.astype(jnp.float32),
            axes=(axis, 0),
            out_sharding=mesh.without(values, axis),
        )
        places.append(places.pop(axis))
    wanted = [axis for axis in range(len(shape) + 1) if axis not in backwards] + backwards
    values = jnp.transpose(mesh.everywhere(values), [places.index(axis) for axis in wanted])
    return values.reshape(2, -1)


def _fold(row: jax.Array, width: int, first: int) -> jax.Array:
    """Adds up [2, any] into [2, width], cyclically, starting at the place `first`."""
    rounds = -(-row.shape[1] // width)
    padded = jnp.pad(row, ((0, 0), (0, rounds * width - row.shape[1])))
    return jnp.roll(jnp.sum(padded.reshape(2, rounds, width), axis=1), first % width, axis=1)
