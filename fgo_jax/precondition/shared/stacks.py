"""Leaves that are treated alike as one array: equal leaves stacked, long sides cut into blocks.

A step then has as many operations as there are kinds of leaves, and so does its compilation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.linalg import mesh, whole_blocks
from fgo_jax.linalg.members import members, numbers
from fgo_jax.precondition.shared.cuts import cut_sides
from fgo_jax.precondition.shared.modes import Modes


class Stack(NamedTuple):
    """Equal leaves as one array, of shape [leaves, blocks, length, blocks, length, ...].

    The first axis exists for more than one leaf, an axis of blocks where a side is cut. A single
    uncut leaf is its own stack. `batch_first` puts these axes in another order.
    """

    places: tuple[int, ...]  # of the leaves in their tree
    cuts: tuple[int, ...]  # the number of blocks along each axis of a leaf
    axes: tuple[int, ...]  # for each axis of a leaf the one of the stack that is inside a block
    modes: Modes  # of the stack
    order: tuple[int, ...] = ()  # for each axis its place in that shape; () is that shape itself
    undivided: bool = False  # whether a device should have whole leaves, not only whole blocks

    def batch_first(self) -> Stack:
        """The same stack as [*batch, *block], so that products of blocks move no entry.

        Otherwise each of them copies its operand, which took a sixth of the Kronecker Fisher's
        update of ViT-small on a CPU.
        """
        order = (*self.modes.batch, *self.modes.unbatched)
        if order == tuple(range(len(order))):
            return self
        place = {axis: i for i, axis in enumerate(order)}
        modes = Modes(
            tuple(self.modes.shape[a] for a in order),
            tuple(tuple(place[a] for a in axes) for axes in self.modes.groups),
            tuple(range(len(self.modes.batch))),
        )
        return self._replace(axes=tuple(place[a] for a in self.axes), modes=modes, order=order)

    @property
    def matrices(self) -> Modes:
        """The leaves or their matrices, each whole: a reduction is over all of its blocks."""
        leaves = self.modes.batch[-1:] if self._several else ()
        batch = tuple(a for a in self.modes.batch if a in self.axes or a in leaves)
        return Modes(self.modes.shape, (), batch)

    @property
    def _several(self) -> bool:
        return len(self.places) > 1

    def _joined(self, of_leaves: int, of_axes: Sequence[int]) -> tuple[int, ...]:
        """Numbers for the axes of the joined leaves: the leaf axis, if any, then the others."""
        return (of_leaves, *of_axes) if self._several else tuple(of_axes)

    def _numbers(self, of_sides: Sequence[int]) -> tuple[int, ...]:
        """Numbers for the axes of a leaf: the given ones of sides, and lengths of batch axes."""
        return tuple(
            self.modes.shape[axis] if axis in self.modes.batch else number
            for axis, number in zip(self.axes, of_sides, strict=True)
        )

    @property
    def _pieces(self) -> tuple[int, ...]:
        """Into how many pieces each axis of a leaf may be split."""
        if not self.modes.groups:
            return tuple(self.modes.shape[axis] for axis in self.axes)
        return self._numbers((1,) * len(self.cuts) if self.undivided else self.cuts)

    @property
    def _leaf_axis(self) -> int | None:
        """The axis of the joined leaves that counts leaves, or else the matrices of one leaf."""
        if self._several:
            return 0
        return next((a for a, axis in enumerate(self.axes) if axis in self.modes.batch), None)

    @property
    def _whole(self) -> bool:
        return max(self.cuts, default=1) == 1

    def join(self, leaves: Sequence[jax.Array], place: jax.Array | None = None) -> jax.Array:
        """The stack of what belongs to its leaves, each of the leaf's shape or with axes of one.

        On explicit axes it lies like `place`, if that is given: an array of the stack's axes.
        """
        first = leaves[self.places[0]]
        parts = [mesh.placed_like(leaves[i], first) for i in self.places]
        x = whole_blocks.with_whole_axis(jnp.stack(parts), first) if self._several else first
        x = self._dealt_out(x)
        if not self._whole:
            x = whole_blocks.cut(x, self._joined(1, self.cuts), self._with_blocks(x.shape))
        x = jnp.transpose(x, self.order) if self.order else x
        return x if place is None else mesh.placed_like(x, place)

    def split(
        self, x: jax.Array, leaves: Sequence[jax.Array], numbers: Sequence[jax.Array]
    ) -> list[tuple[int, jax.Array]]:
        """The parts of a stack, each with its place and sharded like its leaf.

        `numbers` are those of :func:`numbers_for` all stacks of the step.
        """
        if self.order:
            x = jnp.transpose(x, np.argsort(self.order).tolist())
        first, count = leaves[self.places[0]], len(self.places)
        if not self._whole:
            x = whole_blocks.merge(x, self._joined(1, self.cuts), self._joined(count, first.shape))
        parts = [self._dealt_out(x)]
        if self._several:
            x = whole_blocks.with_whole_axis(parts[0], first)
            parts = members(x, numbers)
        parts = [mesh.placed_like(x, leaves[i]) for i, x in zip(self.places, parts, strict=True)]
        return list(zip(self.places, parts, strict=True))

    def _dealt_out(self, x: jax.Array) -> jax.Array:
        if self._leaf_axis is None:
            return x
        pieces = self._joined(len(self.places), self._pieces)
        return whole_blocks.deal_out(x, pieces, self._leaf_axis)

    def zeros(self, leaves: Sequence[Any], dtype: Any = None) -> jax.Array:
        """A stack of zeros, float32 unless said otherwise, in the place of an `init`.

        Sharded like the leaves. Where that would split blocks, whole leaves are dealt out, if
        there are enough.
        """
        first, dtype = leaves[self.places[0]], dtype or jnp.float32
        if self._leaf_axis is None and self._whole and not self.order:
            return jnp.zeros_like(first, dtype=dtype)
        return mesh.made(
            jnp.zeros, self.modes.shape, dtype, self._home(leaves, range(len(self.modes.shape)))
        )

    def blocks(self, axes: Sequence[int]) -> tuple[int, ...]:
        """The axes of blocks of the stack, for axes of a leaf."""
        assert not self.order, "the axes of blocks are no longer next to their lengths"
        return tuple(self.axes[a] - 1 for a in axes if self.cuts[a] > 1)

    def device_of_factor(self, leaves: Sequence[Any], modes: Modes) -> Any:
        """The place of arrays [*batch, d, d] for modes: split like the blocks, and no further."""
        return self._home(leaves, modes.batch)

    def treatment(self, shape: tuple[int, ...], itemsize: int) -> tuple[str, int]:
        """In words for the user, and the bytes of a leaf's factors and bases."""
        long = sum(length > 1 for length in shape)
        if not self.modes.groups:
            if long < 2 or 0 in shape:
                kind = "empty" if 0 in shape else "a vector" if long else "a scalar"
                return f"{kind}, as Adam", 0
            return "no factor, as Adam", 0
        sizes = " and ".join(f"of {d}" for d in self.modes.dims)
        plural = "factors" if len(self.modes.dims) > 1 else "a factor"
        words = f"{plural} {sizes}"
        if not self._whole:
            words = f"{' x '.join(map(str, self.cuts))} blocks, each with {words}"
        inside = {axis for axes in self.modes.groups for axis in axes}
        alone = [
            self.modes.shape[axis]
            for axis in self.modes.unbatched
            if axis not in inside and self.modes.shape[axis] > 1
        ]
        if alone:
            left_out = " and ".join(map(str, alone))
            words += f"; none for the axis of {left_out}: no divisor near the block size, pad it"
        matrices = math.prod(self.modes.shape[axis] for axis in self.modes.batch)
        each = matrices // len(self.places)
        return words, 2 * itemsize * each * sum(d * d for d in self.modes.dims)

    def _with_blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A leaf's shape with its axes of blocks; an axis of length one has one block."""
        sizes: list[int] = []
        for length, cut in zip(shape, self._joined(1, self.cuts), strict=True):
            blocks = min(cut, length)
            sizes += [length] if cut == 1 else [blocks, length // blocks]
        return tuple(sizes)

    def _home(self, leaves: Sequence[Any], axes: Sequence[int]) -> Any:
        """The place of a new array whose first axes are these of the stack."""
        follows, counts = self._axes(), None
        if self._leaf_axis is not None:
            # The axis of leaves comes last in the batch.
            axis = self.modes.batch[-1] if self._several else self.axes[self._leaf_axis]
            counts = list(axes).index(axis), self.modes.shape[axis]
        return whole_blocks.of_new(
            leaves[self.places[0]],
            self._numbers(self.cuts),
            [follows[a] for a in axes],
            self._pieces,
            counts,
        )

    def _axes(self) -> list[int | None]:
        """For each axis of the stack the axis of a leaf whose sharding it may have."""
        axes: list[int | None] = [None] if self._several else []
        for axis, cut in enumerate(self.cuts):
            axes += [axis] if cut == 1 else [axis, None]
        return [axes[a] for a in self.order] if self.order else axes


def numbers_for(stacked: Sequence[Stack], step: jax.Array) -> list[jax.Array]:
    """What :meth:`Stack.split` needs, once for all stacks; `step` is a count of updates."""
    return numbers(max((len(stack.places) for stack in stacked), default=0), step)


def stacks(tree: Any, modes: Sequence[Modes], block_size: int) -> list[Stack]:
    """The stacks of a tree's leaves.

    Leaves share a stack if their shapes and modes agree, and their names up to numbers, such as
    those of layers. So they have the same role in the model, and usually the same sharding.
    """
    kinds: dict[Any, list[int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for i, ((path, _), m) in enumerate(zip(leaves, modes, strict=True)):
        part = re.sub(r"\d+", "#", jax.tree_util.keystr(path))
        kinds.setdefault((m, part), []).append(i)
    return [_stack(tuple(places), modes[places[0]], block_size) for places in kinds.values()]


def treatments(
    stacked: Sequence[Stack], leaves: Sequence[Any], dtype: Any
) -> list[tuple[str, int]]:
    """`Stack.treatment` of every leaf, in the order of the tree; `dtype` is that of factors."""
    itemsize = jnp.dtype(dtype).itemsize
    found = {
        place: stack.treatment(jnp.shape(leaves[place]), itemsize)
        for stack in stacked
        for place in stack.places
    }
    return [found[place] for place in range(len(leaves))]


def check_factors(name: str, wanted: Any, factors: Any) -> None:
    """Raises where a state was made for other blocks, such as one that was restored."""
    shapes = tuple(jax.tree.map(jnp.shape, factors))
    if shapes == wanted:
        return
    have, want = len(shapes), len(wanted)
    if have == want:
        have, want = next(pair for pair in zip(shapes, wanted, strict=True) if pair[0] != pair[1])
    raise ValueError(
        f"{name} has the state of an earlier version, another block_size, or of other parameters, "
        f"with factors {have} in place of {want}: pass the block_size that it was made with, and "
        "a gradient for every parameter; leave one out by optax.masked, not by None."
    )


def _stack(places: tuple[int, ...], modes: Modes, block_size: int) -> Stack:
    groups, cuts = cut_sides(modes, block_size)
    shape: list[int] = [len(places)] if len(places) > 1 else []
    # The axis of leaves comes last in the batch. So the blocks of one device are next to each other
    # when the batch is flattened.
    batch, last = [], list(range(len(shape)))
    moved = []
    for axis, (length, blocks) in enumerate(zip(modes.shape, cuts, strict=True)):
        if blocks > 1:
            batch.append(len(shape))
            shape.append(blocks)
        if axis in modes.batch:
            batch.append(len(shape))
        moved.append(len(shape))
        shape.append(length // blocks)
    view = tuple(tuple(moved[a] for a in axes) for axes in groups)
    modes = Modes(tuple(shape), view, (*batch, *last))
    return Stack(places, tuple(cuts), tuple(moved), modes)
