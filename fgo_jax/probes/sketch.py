"""CountSketch of a pytree without reshaping or gathering a leaf."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def sketch_tree(tree: Any, seed: jax.Array, width: int) -> jax.Array:
    r"""Two independent sketches of a pytree, with unbiased inner products.

    Every entry gets a random sign, a hash of the seed, its leaf and its position, and
    is added to one of ``width`` buckets: :math:`E\langle Sx, Sy\rangle = \langle x,
    y\rangle` over the signs, whatever the buckets. The buckets of a leaf are a product
    of one residue class per axis, so bucketing is a product with a small 0/1 matrix
    along each axis. A sharded leaf is therefore reduced where it lies, and only
    ``width`` numbers travel.

    Args:
      tree: real arrays of any shape.
      seed: [], uint32.
      width: entries of a sketch.

    Returns:
      [2, width], float32.

    Source: Charikar, Chen, Farach-Colton (2002), with the hash computed from the
    position instead of stored.
    """
    sketches = sketch_leaves(tree, seed, width)
    return sum(sketches, jnp.zeros([2, width], jnp.float32))


def sketch_leaves(tree: Any, seed: jax.Array, width: int) -> list[jax.Array]:
    """The terms of `sketch_tree`, one for each leaf; those of a subtree add up to its own."""
    return [
        _sketch_leaf(leaf, seed, index, width) if leaf.size else jnp.zeros([2, width], jnp.float32)
        for index, leaf in enumerate(jax.tree.leaves(tree))
    ]


def _sketch_leaf(leaf: jax.Array, seed: jax.Array, index: int, width: int) -> jax.Array:
    bits = _mix(_positions(leaf.shape) + _mix(seed + jnp.uint32(0x9E3779B9 * (index + 1) % 2**32)))
    values = leaf.astype(jnp.float32)
    sketches = [_bucket(jnp.where(bits & bit, values, -values), width) for bit in (1, 2)]
    # Leaves smaller than the sketch would all pile up in its first buckets.
    offset = (index * 389) % width
    return jnp.roll(jnp.stack(sketches), offset, axis=1)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """A distinct uint32 for every entry (row-major, wrapping beyond 2^32 entries)."""
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(
            stride % 2**32
        )
        stride *= shape[axis]
    return position


def _mix(bits: jax.Array) -> jax.Array:
    """Finaliser of MurmurHash3: every input bit flips every output bit half of the time."""
    bits = bits ^ (bits >> 16)
    bits = bits * jnp.uint32(0x85EBCA6B)
    bits = bits ^ (bits >> 13)
    bits = bits * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _bucket(values: jax.Array, width: int) -> jax.Array:
    """Sums the entries of a leaf into [width] buckets."""
    buckets = list(values.shape)
    while _size(buckets) > width:
        widest = max(range(len(buckets)), key=buckets.__getitem__)
        buckets[widest] = (buckets[widest] + 1) // 2
    for axis, (size, classes) in enumerate(zip(values.shape, buckets, strict=True)):
        if classes == size:
            continue
        if values.ndim == 1:
            # A vector's 0/1 matrix would be as large as the sketch times the vector.
            padded = jnp.pad(values, (0, -size % classes))
            return jnp.pad(jnp.sum(padded.reshape(-1, classes), 0), (0, width - classes))
        member = (jnp.arange(size) % classes)[:, None] == jnp.arange(classes)
        values = jnp.moveaxis(
            jnp.tensordot(values, member.astype(jnp.float32), axes=(axis, 0)), -1, axis
        )
    return jnp.pad(values.reshape(-1), (0, width - values.size))


def _size(shape: list[int]) -> int:
    size = 1
    for dimension in shape:
        size *= dimension
    return size
