"""The members of a stack of arrays, in slices that compile once."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

# Up to this many slices compile in a tenth of a second.
_FEW = 8


def numbers(count: int, counter: jax.Array) -> list[jax.Array]:
    """0, 1, ... [], uint32, `count` of them, none if few; not constants to XLA.

    Args:
      count: the members of the largest stack.
      counter: [], int32, never negative, which XLA does not know.
    """
    if count <= _FEW:
        return []
    known = [np.uint32(number) for number in range(count)]
    # No number is the same in both branches: XLA would know that one.
    return jax.lax.cond(counter < 0, lambda: [*known[1:], known[0]], lambda: known)


def members(stack: jax.Array, places: Sequence[jax.Array]) -> list[jax.Array]:
    """stack[0], stack[1], ... of a stack [n, ...].

    On a CPU, a slice at a fixed place is a kernel of its own, which takes 15 ms to compile: for 400
    leaves that was a third of the step's compilation. So the places are numbers that XLA cannot
    know, and all slices of a stack are one kernel. Under `jax.vmap` they become gathers.

    Args:
      stack: [n, ...].
      places: of :func:`numbers`, which all stacks of a step share.
    """

    def at_fixed_places(stack: jax.Array, places: list[jax.Array]) -> list[jax.Array]:
        del places
        return list(stack)

    def in_one_kernel(stack: jax.Array, places: list[jax.Array]) -> list[jax.Array]:
        return [jax.lax.dynamic_index_in_dim(stack, place, keepdims=False) for place in places]

    # On a mesh the partitioner should know what a slice needs.
    if len(stack) <= _FEW or not jax.typeof(stack).sharding.mesh.empty:
        return list(stack)
    own = list(places[: len(stack)])
    return jax.lax.platform_dependent(stack, own, cpu=in_one_kernel, default=at_fixed_places)
