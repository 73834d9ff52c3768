"""Into which blocks the sides of a leaf are cut, so that each block has factors of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from fgo_jax.precondition.shared.modes import Modes

# A block is at most this many times as long as the product of its other sides, if it can be cut. A
# longer side's factor has many times as many entries as the block, and the gradients between two
# refreshes do not fill it: rounding sets the rest of its basis. On heads of 512 x 10 and 784 x 10
# the Kronecker Fisher learns faster with blocks of this shape than with whole sides, and FISMO on
# the first as fast. A transformer's kernels, one to four times as long as wide, stay whole.
_LONGEST = 6


def cut_sides(modes: Modes, block_size: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """The sides that have factors, and the number of equal blocks along each axis of a leaf."""
    sides = {axes: [modes.shape[axis] for axis in axes] for axes in modes.groups}
    found = {axes: _fewest(lengths, block_size) for axes, lengths in sides.items()}
    block = math.prod(modes.shape[axis] for axis in modes.unbatched)
    block //= math.prod(math.prod(cuts or ()) for cuts in found.values())
    for axes, cuts in found.items():
        if cuts is None:
            continue
        length = math.prod(sides[axes]) // math.prod(cuts)
        longest = _LONGEST * (block // length)
        if length > longest > _LONGEST:  # a vector has no other side
            found[axes] = _fewest(sides[axes], longest) or cuts
    by_axis = {a: c for axes, cuts in found.items() for a, c in zip(axes, cuts or (), strict=False)}
    return (
        [axes for axes, cuts in found.items() if cuts],
        [by_axis.get(axis, 1) for axis in range(len(modes.shape))],
    )


def _fewest(lengths: Sequence[int], longest: int) -> tuple[int, ...] | None:
    """The number of equal blocks along each axis of a side; None for a side without a factor.

    A side that has no divisor near the longest block would fall into many small blocks. Blocks of
    less than a quarter of it have no factor.
    """
    total = math.prod(lengths)
    divisors = [[c for c in range(1, n + 1) if n % c == 0] for n in lengths]
    fitting = [c for c in itertools.product(*divisors) if total <= longest * math.prod(c)]
    # Ties: cut along the first axes.
    cuts = min(fitting, key=lambda cuts: (math.prod(cuts), [-cut for cut in cuts]))
    block = total // math.prod(cuts)
    small = math.prod(cuts) > 1 and 4 * block < longest
    return None if block <= 1 or small else cuts
