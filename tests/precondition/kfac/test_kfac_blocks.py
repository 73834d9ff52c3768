"""Sides that are longer than block_size."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.precondition import kfac_layers
from fgo_jax.precondition.kfac import roots
from fgo_jax.precondition.kfac.layers import Layer
from tests import draws


class Net(nn.Module):
    """Inputs of two axes and a bias, outputs that blocks do not divide, and a short side."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(7, (3,))(x))  # 3 x 2 inputs and the bias; 7 outputs
        x = jnp.tanh(nn.DenseGeneral((3, 2), use_bias=False)(x))  # 7 inputs; 3 x 2 outputs
        return nn.DenseGeneral(2, axis=(-2, -1))(x)


def predict(params, batch):
    return Net().apply({"params": params}, batch)


DAMPING = 0.03


@functools.cache
def problem():
    x = draws.normal(8, 5, 2)
    params = draws.params(Net(), x)
    return params, x, kfac_layers(predict, params, x)


def make(**options):
    layers = problem()[2]
    return fgo.scale_by_kfac(
        predict, layers=layers, norm_constraint=None, damping=DAMPING, burn_in=1, **options
    )


@functools.cache
def first_step(**options):
    params, x, _ = problem()
    tx = make(**options)
    return jax.jit(tx.update)(params, tx.init(params), params, batch=x)


def masked(factor, blocks):
    """The entries of a full factor that lie in one of the blocks."""
    n, count = len(factor), blocks.shape[0]
    place = np.arange(n) // -(-n // count)
    return factor * (place[:, None] == place)


def test_a_long_side_has_the_blocks_of_its_factor_on_the_diagonal():
    _, state = first_step(block_size=4)
    shapes = [[f.shape for f in layer[0]] for layer in state.factors]
    assert shapes == [[(2, 4, 4)] * 2, [(2, 4, 4), (2, 3, 3)], [(2, 4, 4), (2, 2)]]
    for layer, whole in zip(state.factors, first_step()[1].factors, strict=True):
        for blocks, factor in zip(layer[0], whole[0], strict=True):
            if blocks.ndim == 3:
                dense = np.asarray(jax.scipy.linalg.block_diag(*blocks))
                n = len(factor)
                np.testing.assert_allclose(dense[:n, :n], masked(factor, blocks), atol=1e-6)
                assert not dense[n:].any()


def test_the_update_is_that_of_the_factors_without_what_lies_outside_of_the_blocks():
    updates, state = first_step(block_size=4)
    params, wholes = problem()[0], first_step()[1].factors
    for name, layer, whole in zip(sorted(params), state.factors, wholes, strict=True):
        inverses = []
        for blocks, factor in zip(layer[0], whole[0], strict=True):
            x = np.float64(masked(factor, blocks) if blocks.ndim == 3 else factor)
            mean = np.trace(x) / len(x)
            inverses.append(np.linalg.inv(x + DAMPING**0.5 * mean * np.eye(len(x))))
        left, right = inverses
        leaves, given = updates[name], params[name]
        rows = [leaf["kernel"].reshape(-1, len(right)) for leaf in (leaves, given)]
        if "bias" in given:
            biases = (leaves["bias"], given["bias"])
            rows = [np.vstack([k, b.reshape(1, -1)]) for k, b in zip(rows, biases, strict=True)]
        np.testing.assert_allclose(rows[0], left @ rows[1] @ right, rtol=2e-3, atol=2e-3)


def test_the_roots_of_stacked_layers_multiply_as_their_dense_matrices():
    rng = np.random.default_rng(0)
    layer = Layer("scanned", "linear", 0, 1, stack=(2,), inputs=(3, 2), outputs=(7,))
    left, right = (
        jnp.float32(x + np.swapaxes(x, -1, -2)) for x in rng.normal(size=(2, 2, 2, 4, 4))
    )
    kernel, bias = (jnp.float32(rng.normal(size=s)) for s in ((2, 3, 2, 7), (2, 7)))
    found = roots.apply(layer, (left, right), kernel, bias)
    for i in range(2):
        dense = [jax.scipy.linalg.block_diag(*side[i])[:7, :7] for side in (left, right)]
        wanted = dense[0] @ jnp.vstack([kernel[i].reshape(6, 7), bias[i]]) @ dense[1]
        rows = jnp.vstack([found[0][i].reshape(6, 7), found[1][i]])
        np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-4)


def test_blocks_of_one_are_a_diagonal():
    _, state = first_step(block_size=1)
    for layer, whole in zip(state.factors, first_step()[1].factors, strict=True):
        for diagonal, factor in zip(layer[0], whole[0], strict=True):
            np.testing.assert_allclose(diagonal, np.diag(factor), rtol=1e-4, atol=1e-7)


def test_the_state_of_another_block_size_is_refused():
    params, x, _ = problem()
    with pytest.raises(ValueError, match="pass the block_size that it was made with"):
        make(block_size=4).update(params, first_step()[1], params, batch=x)
