"""Equal matrices as one array, and the blocks of their sides that have a factor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh
from fgo_jax.precondition.shared.modes import Modes, identity
from fgo_jax.precondition.shared.stacks import Stack, stacks

# A factor for rows and for columns, [*blocks, *batch, d, d]; None for a side that keeps the
# identity.
Pair = tuple[jax.Array | None, jax.Array | None]


class Matrices(NamedTuple):
    """A stack of leaves that are matrices, seen as a whole and side by side."""

    stack: Stack
    whole: Modes  # rows and columns
    sides: tuple[Modes | None, Modes | None]  # the blocks of a side; None for one without a factor

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        return tuple(None if side is None else side.factor_shape(0) for side in self.sides)

    def identities(self, leaves: Sequence[Any]) -> Pair:
        """The first factors of both sides, split over a mesh like the blocks of the side."""

        def start(side: Modes | None) -> jax.Array | None:
            if side is None:
                return None
            return identity(side.factor_shape(0), self.stack.device_of_factor(leaves, side))

        rows, columns = self.sides
        return start(rows), start(columns)

    def at_home(self, pair: Pair, x: jax.Array) -> Pair:
        """Factors of both sides, split over the mesh of the stack x like its blocks."""
        rows, columns = (
            factor if side is None else mesh.put_on_batch(factor, x, side.batch)
            for factor, side in zip(pair, self.sides, strict=True)
        )
        return rows, columns

    def where(self, good: jax.Array, new: Any, old: Any) -> Pair:
        """Factors of both sides: new for good matrices, old for others."""
        rows, columns = (
            None if side is None else jnp.where(side.per_factor(good), n, o)
            for side, n, o in zip(self.sides, new, old, strict=True)
        )
        return rows, columns

    def multiply(self, x: jax.Array, factor: jax.Array | None, side: int) -> jax.Array:
        """The factor times X from the left (side 0) or from the right (side 1)."""
        view = self.sides[side]
        return x if factor is None or view is None else view.multiply(x, factor, 0)

    def between(self, x: jax.Array, pair: Pair) -> jax.Array:
        """P X Q."""
        for side, factor in enumerate(pair):
            x = self.multiply(x, factor, side)
        return x

    def number_of_blocks(self, side: int) -> int:
        """The number of blocks along a side; 1 without a factor."""
        view = self.sides[side]
        return 1 if view is None else self.whole.dims[side] // view.dims[0]

    def treatment(self) -> tuple[str, int]:
        """In words for the user, and the bytes of the factors and roots of a leaf."""
        words, count = [], 0
        for index, side in enumerate(self.sides):
            if side is not None:
                blocks, d = self.number_of_blocks(index), side.dims[0]
                words.append(f"of {d}" if blocks == 1 else f"of {blocks} blocks of {d}")
                count += 8 * math.prod(side.factor_shape(0)) // len(self.stack.places)
        if not words:
            return "orthogonalised, without a factor", 0
        return f"orthogonalised between factors {' and '.join(words)}", count


def matrices(tree: Any, found: Sequence[Modes | None], block_size: int) -> list[Matrices | int]:
    """The matrices of a tree, equal ones together; for each other leaf its place in the tree."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    views = [Modes(s, ()) if v is None else v for s, v in zip(shapes, found, strict=True)]
    kinds: list[Matrices | int] = []
    for stack in stacks(tree, views, block_size):
        view = found[stack.places[0]]
        kinds += stack.places if view is None else [_matrices(stack, view)]
    return kinds


def _matrices(stack: Stack, view: Modes) -> Matrices:
    batch = stack.matrices.batch

    def whole(axes: Sequence[int]) -> tuple[int, ...]:
        pairs = [(*stack.blocks([a]), stack.axes[a]) for a in axes]
        return tuple(itertools.chain.from_iterable(pairs))

    def side(axes: Sequence[int]) -> Modes | None:
        inner = tuple(stack.axes[a] for a in axes)
        if inner not in stack.modes.groups:
            return None
        return stack.modes._replace(groups=(inner,), batch=(*stack.blocks(axes), *batch))

    rows, columns = view.groups
    return Matrices(
        stack._replace(undivided=True),
        stack.modes._replace(groups=(whole(rows), whole(columns)), batch=batch),
        (side(rows), side(columns)),
    )
