"""`describe` says of every leaf what is done with it, through every wrapper."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo

SHAPES = {"table": (50257, 768), "wide": (768, 3072), "bias": (3072,), "prime": (1031, 1031)}
PARAMS = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}


def rows(text):
    """Leaf to the rest of its line."""
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line]
    return {line[0]: line[1] for line in lines if len(line) > 1}


def test_the_kronecker_fisher_tells_blocks_and_what_has_no_factor_and_why():
    found = rows(fgo.describe(fgo.scale_by_kronecker_fisher(), PARAMS))
    assert "1 x 3 blocks, each with factors of 768 and of 1024" in found["wide"]
    assert found["wide"].endswith(f"{8 * 3 * (768**2 + 1024**2) / (768 * 3072):.1f}")
    assert "a factor of 768; none for the axis of 50257" in found["table"]
    assert "a vector, as Adam" in found["bias"]
    assert "no factor, as Adam" in found["prime"]
    total = 8 * sum(x.size for x in PARAMS.values()) + 8 * (3 * (768**2 + 1024**2) + 768**2) + 4
    assert f"state: {total / 1e6:.3g} MB" in fgo.describe(fgo.scale_by_kronecker_fisher(), PARAMS)


def test_factors_in_half_precision_take_half_the_bytes():
    params = {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    for dtype, each in ((None, 4), (jnp.float32, 4), (jnp.bfloat16, 2)):
        found = rows(fgo.describe(fgo.scale_by_kronecker_fisher(factor_dtype=dtype), params))
        # Two factors and two bases, each as large as the kernel.
        assert found["kernel"].endswith(f" {4 * each:.1f}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.partition({"all": tx}, "all"),
        lambda tx: fgo.phased([fgo.acquisition(0.1, transform=tx)], []),
        lambda tx: fgo.target_acquisition(0.1, transform=tx),
    ],
)
def test_a_wrapper_hides_nothing(wrap):
    tx = fgo.scale_by_kronecker_fisher(block_size=256)
    assert (
        fgo.describe(wrap(tx), PARAMS).splitlines()[:6] == fgo.describe(tx, PARAMS).splitlines()[:6]
    )


def test_masked_leaves_are_not_described():
    mask = {name: name == "wide" for name in PARAMS}
    tx = optax.masked(fgo.scale_by_kronecker_fisher(), mask)
    assert set(rows(fgo.describe(tx, PARAMS))) == {"leaf", "wide", "state:"}


def test_fismo_tells_the_sides_that_are_whitened():
    found = rows(fgo.describe(fgo.scale_by_fismo(), PARAMS))
    assert "orthogonalised between factors of 768" in found["wide"]
    assert "no matrix, as Adam" in found["bias"]
    assert "orthogonalised, without a factor" in found["prime"]


def test_kfac_tells_the_layers_their_blocks_and_what_is_diagonal():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.LayerNorm()(nn.Dense(6)(x)))

    model = Model()
    params = model.init(jax.random.key(0), jnp.ones((1, 5)))
    tx = fgo.scale_by_kfac(
        lambda p, batch: model.apply(p, batch[0]), "softmax_cross_entropy", block_size=5
    )
    found = rows(fgo.describe(tx, params))
    kernel = found["params/Dense_0/kernel"]
    assert "kernel of linear layer params/Dense_0: factors of 4 (2 blocks) and 3 " in kernel
    assert "in the kernel's factors" in found["params/Dense_0/bias"]
    assert "a diagonal Fisher" in found["params/LayerNorm_0/scale"]


def test_it_says_the_same_to_whoever_has_traced_the_state_before():
    tx = fgo.scale_by_kronecker_fisher()
    first = fgo.describe(tx, PARAMS)
    jax.eval_shape(tx.init, PARAMS)
    assert fgo.describe(tx, PARAMS) == first
    assert "1 x 3 blocks" in first


def test_any_other_optimizer_has_its_total_alone():
    params = {"w": jnp.ones((10, 10)), "b": jnp.ones(0)}
    assert fgo.describe(optax.adam(0.1), params) == "state: 804 bytes, 8.0 bytes per parameter"
