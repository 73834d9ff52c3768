"""The members of a stack: the same as by index, and one kernel for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.linalg.members import members, numbers
from tests import hlo


def parts_of(stack, counter):
    return members(stack, numbers(len(stack), counter))


@pytest.mark.parametrize("count", [1, 3, 40])
def test_they_are_the_slices_of_the_stack(count):
    stack = jnp.arange(count * 6.0).reshape(count, 2, 3)
    found = jax.jit(parts_of)(stack, jnp.int32(7))
    np.testing.assert_array_equal(jnp.stack(found), stack)
    assert len(found) == count


def test_an_ensemble_has_its_own():
    stacks = jnp.arange(2 * 40 * 3.0).reshape(2, 40, 3)
    found = jax.vmap(parts_of)(stacks, jnp.arange(2))
    np.testing.assert_array_equal(jnp.stack(found, axis=1), stacks)


def test_forty_slices_compile_as_one():
    stack, others = jnp.ones((40, 8, 4)), [jnp.ones((8, 4))] * 40

    def added(stack, others, counter):
        parts = parts_of(stack, counter)
        return [jnp.tanh(other) + part for other, part in zip(others, parts, strict=True)]

    compiled = jax.jit(added).lower(stack, others, jnp.int32(0)).compile()
    assert len(hlo.distinct_fusions(compiled.as_text())) == 2  # it, and the condition
