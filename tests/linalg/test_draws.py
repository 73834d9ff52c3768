"""Random numbers for many leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from fgo_jax.linalg.draws import drawn_like
from fgo_jax.linalg.operator import random_signs


def _normal(key, leaf):
    return jax.random.normal(key, leaf.shape)


def _leaves(count):
    return [jnp.zeros([(3, 5), (4,), ()][i % 3]) for i in range(count)]


def test_numbers_are_those_of_one_leaf_at_a_time():
    tree = {"many": _leaves(30), "one": jnp.zeros((2, 3)), "none": None}
    key = jax.random.key(3)
    leaves = jax.tree.leaves(tree)
    drawn = jax.jit(lambda key: drawn_like(_normal, key, tree))(key)
    assert jax.tree.structure(drawn) == jax.tree.structure(tree)
    apart = zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    for got, (one, leaf) in zip(jax.tree.leaves(drawn), apart, strict=True):
        np.testing.assert_array_equal(got, _normal(one, leaf))
    assert drawn_like(_normal, key, ()) == ()


def test_equal_leaves_share_their_draws():
    def loops(count):
        drawn = jax.jit(lambda key: random_signs(key, _leaves(count)))
        return drawn.lower(jax.random.key(0)).compile().as_text().count(" while(")

    assert loops(30) == loops(3) > 0
