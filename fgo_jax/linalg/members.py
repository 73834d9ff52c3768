"""The members of a stack of arrays, in slices that compile once."""

from __future__ import annotations

import jax
import numpy as np

# XLA compiles up to so many slices in a tenth of a second.
_FEW = 8


def members(stack: jax.Array, counter: jax.Array) -> list[jax.Array]:
    """stack[0], stack[1], ... of a stack [n, ...].

    On a CPU, a slice at a fixed place is a kernel of its own, which takes 15 ms to compile: for 400
    leaves that was a third of the step's compilation. So the places are numbers that XLA cannot
    know, and all slices of a stack are one kernel. Under `jax.vmap` they become gathers.

    Args:
      stack: [n, ...].
      counter: [], int32, never negative, which XLA does not know.
    """

    def at_fixed_places(stack: jax.Array, counter: jax.Array) -> list[jax.Array]:
        del counter
        return list(stack)

    def in_one_kernel(stack: jax.Array, counter: jax.Array) -> list[jax.Array]:
        numbers = [np.int32(number) for number in range(len(stack))]
        places = jax.lax.cond(counter < 0, lambda: [numbers[0]] * len(stack), lambda: numbers)
        return [jax.lax.dynamic_index_in_dim(stack, place, keepdims=False) for place in places]

    # On a mesh the partitioner should know what a slice needs.
    if len(stack) <= _FEW or not jax.typeof(stack).sharding.mesh.empty:
        return at_fixed_places(stack, counter)
    return jax.lax.platform_dependent(stack, counter, cpu=in_one_kernel, default=at_fixed_places)
