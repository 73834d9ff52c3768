"""Equal leaves share a stack, long sides are cut into blocks, and each counts as if alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fgo_jax.precondition import scale_by_fismo
from fgo_jax.precondition.kronecker.transform import scale_by_kronecker_fisher
from fgo_jax.precondition.shared.modes import Modes
from fgo_jax.precondition.shared.stacks import stacks
from tests.precondition.sequences import gradients, run
from tests.precondition.sharded import as_one

OPTIONS = [{}, {"power": 1.0, "centred": True}, {"corrected": False, "power": 0.25}]


def matrix(shape):
    return Modes(shape, ((0,), (1,)))


def sequence(shapes, steps=7):
    found = {k: list(gradients(s, steps, seed=9 + i)) for i, (k, s) in enumerate(shapes.items())}
    return [{k: jnp.asarray(g[t], jnp.float32) for k, g in found.items()} for t in range(steps)]


def test_leaves_share_a_stack_if_only_a_number_tells_their_names_apart():
    kernel, other = jnp.ones((4, 3)), jnp.ones((3, 4))
    bias = jnp.ones(3)
    assert len(stacks([bias, bias], [Modes((3,), ())] * 2, 8)) == 1
    tree = {
        "layers_0": {"query": kernel, "out": kernel},
        "layers_1": {"query": kernel, "out": kernel},
        "layers_2": {"query": other, "out": kernel},
    }
    found = stacks(tree, [matrix(x.shape) for x in jax.tree.leaves(tree)], 8)
    assert [stack.places for stack in found] == [(0, 2, 4), (1, 3), (5,)]
    assert [stack.modes.shape for stack in found] == [(3, 4, 3), (2, 4, 3), (3, 4)]


@pytest.mark.parametrize(
    ("lengths", "stacked", "dims"),
    [
        ((6, 4), (6, 4), (6, 4)),
        ((6, 8), (6, 8), (6, 8)),
        ((6, 16), (6, 2, 8), (6, 8)),
        ((9, 12), (3, 3, 2, 6), (3, 6)),
        ((11, 8), (11, 8), (8,)),  # a prime has no blocks, and so no factor
        ((58, 8), (58, 8), (8,)),  # nor have 29 blocks of two
    ],
)
def test_a_side_is_cut_into_the_fewest_equal_blocks(lengths, stacked, dims):
    leaf = jnp.arange(float(np.prod(lengths))).reshape(lengths)
    (found,) = stacks([leaf], [matrix(lengths)], 9 if lengths[0] == 58 else 8)
    assert found.modes.shape == stacked
    assert found.modes.dims == dims
    joined = found.join([leaf])
    assert joined.shape == stacked
    ((place, back),) = found.split(joined, [leaf], [])
    assert place == 0
    np.testing.assert_array_equal(back, leaf)


def test_blocks_of_one_have_no_factor():
    (found,) = stacks([jnp.ones((3, 4))], [matrix((3, 4))], 1)
    assert found.modes == Modes((3, 4), ())


def test_a_side_of_many_axes_is_cut_along_the_first_that_can_be():
    leaf = jnp.ones((6, 4, 8))
    (found,) = stacks([leaf], [Modes(leaf.shape, ((0,), (1, 2)))], 16)
    assert found.modes == Modes((6, 2, 2, 8), ((0,), (2, 3)), (1,))


@pytest.mark.parametrize(
    ("lengths", "cuts"),
    [((7, 7, 32), (1, 1, 2)), ((5, 5, 64), (1, 1, 2)), ((3, 3, 512), (3, 1, 2)), ((8, 6), (2, 1))],
)
def test_a_side_of_many_axes_has_the_fewest_blocks_whichever_axes_they_cut(lengths, cuts):
    # The sides of convolutions' kernels: the first axes alone gave too many blocks, or none.
    size, other = (1024, 512) if len(lengths) == 3 else (24, 24)
    leaf = jnp.ones((*lengths, other))
    (found,) = stacks([leaf], [Modes(leaf.shape, (tuple(range(len(lengths))),))], size)
    assert found.cuts == (*cuts, 1)


@pytest.mark.parametrize(
    ("modes", "cuts", "dims"),
    [
        (matrix((512, 10)), (16, 1), (32, 10)),  # a head
        (matrix((8, 1024)), (1, 32), (8, 32)),  # an adapter of low rank
        (matrix((64, 16)), (1, 1), (64, 16)),
        (matrix((48, 10)), (1, 1), (48, 10)),
        (matrix((2048, 64)), (8, 1), (256, 64)),
        (matrix((97, 8)), (1, 1), (97, 8)),  # a prime
        (Modes((256,), ((0,),)), (1,), (256,)),  # a vector has one side
        (Modes((4, 128, 16), ((1,), (2,)), (0,)), (1, 2, 1), (64, 16)),  # four layers
        (Modes((3, 3, 1, 96), ((0,), (1,), (3,))), (1, 1, 1, 2), (3, 3, 48)),  # a depthwise kernel
    ],
)
def test_a_block_is_at_most_six_times_as_long_as_wide(modes, cuts, dims):
    (found,) = stacks([jnp.ones(modes.shape)], [modes], 1024)
    assert (found.cuts, found.modes.dims) == (cuts, dims)


@pytest.mark.parametrize("factory", [scale_by_kronecker_fisher, scale_by_fismo])
def test_a_state_of_other_blocks_is_refused(factory):
    params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    state = factory(block_size=8).init(params)
    with pytest.raises(ValueError, match="pass the block_size that it was made with"):
        jax.eval_shape(factory(block_size=4).update, params, state)
    with pytest.raises(ValueError, match="or of other parameters"):
        jax.eval_shape(factory(block_size=8).update, {"w": params["w"]}, state)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_leaf_of_a_stack_is_treated_as_if_alone(options):
    tx = scale_by_kronecker_fisher(refresh_every=3, **options)
    trees = sequence({"layer_0": (4, 5), "layer_1": (4, 5), "bias_0": (5,), "bias_1": (5,)})
    together, state = run(tx, trees)
    assert [f[0].shape for f in state.factors if f] == [(2, 4, 4)]
    for name in trees[0]:
        alone, _ = run(tx, [tree[name] for tree in trees])
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[name], b, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_block_is_preconditioned_as_if_it_were_a_leaf(options):
    trees = sequence({f"part_{i}": (4, 5) for i in range(6)})
    whole = [
        {"kernel": jnp.block([[tree[f"part_{2 * i + j}"] for j in range(2)] for i in range(3)])}
        for tree in trees
    ]
    # Noise is brought to unit size over a whole leaf, the one thing that blocks share.
    options = options | {"centred": False}
    blocked, state = run(scale_by_kronecker_fisher(refresh_every=3, block_size=5, **options), whole)
    assert [f.shape for f in state.factors[0]] == [(3, 2, 4, 4), (3, 2, 5, 5)]
    parts, _ = run(scale_by_kronecker_fisher(refresh_every=3, **options), trees)
    for a, b in zip(blocked, parts, strict=True):
        for i in range(6):
            rows, columns = 4 * (i // 2), 5 * (i % 2)
            part = b[f"part_{i}"]
            np.testing.assert_allclose(
                a["kernel"][rows : rows + 4, columns : columns + 5],
                part,
                atol=1e-3 * np.abs(part).max(),
            )


def test_a_wide_kernel_has_factors_on_both_sides_at_the_default():
    kernel = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    state = jax.eval_shape(scale_by_kronecker_fisher().init, {"kernel": kernel})
    assert [f.shape for f in state.factors[0]] == [(4, 4, 1024, 1024)] * 2
    assert state.first_moment[0].shape == (4, 4, 1024, 1024)


def test_one_bad_entry_stops_its_leaf_and_no_other_of_the_stack():
    tx = scale_by_kronecker_fisher(refresh_every=2, block_size=4)
    good = {"layer_0": jnp.arange(24.0).reshape(3, 8), "layer_1": jnp.ones((3, 8))}
    bad = good | {"layer_0": good["layer_0"].at[0, 0].set(jnp.nan)}
    _, before = run(tx, [good])
    updates, after = run(tx, [good, bad])
    np.testing.assert_array_equal(updates[1]["layer_0"], 0.0)
    assert np.all(np.isfinite(updates[1]["layer_1"]))
    for old, new in zip(before.factors[0], after.factors[0], strict=True):
        np.testing.assert_array_equal(old[..., 0, :, :], new[..., 0, :, :])
        assert not np.array_equal(old[..., 1, :, :], new[..., 1, :, :])


def test_the_number_of_operations_does_not_grow_with_the_layers():
    def loops(layers):
        params = {f"layer_{i}": {"kernel": jnp.ones((4, 5))} for i in range(layers)}
        tx = scale_by_kronecker_fisher()
        return str(jax.make_jaxpr(tx.update)(params, tx.init(params))).count("dot_general")

    assert loops(2) == loops(9)


def test_blocks_stay_with_their_shards():
    # Blocks of four: shards of the rows are whole blocks, those of the columns are halves of one.
    specs = {f"layer_{i}": P("data", "model") for i in range(2)} | {"wide": P("model", None)}
    shapes = {"layer_0": (16, 8), "layer_1": (16, 8), "wide": (8, 12)}
    tx = scale_by_kronecker_fisher(refresh_every=2, block_size=4)
    for kind, mesh, *states in as_one(tx, shapes, specs, 1e-3, lambda state: ()):
        for one in states:
            # [blocks, blocks, leaves, 4, 4], the blocks where their rows and columns are.
            for factor in (*one.factors[0], *one.bases[0]):
                spread = NamedSharding(mesh, P("data", "model", None, None, None))
                assert factor.sharding.is_equivalent_to(spread, 5), (kind, factor.sharding)
