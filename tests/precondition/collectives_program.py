"""What test_collectives.py runs on eight devices: what travels between them, from the program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from tests import compilations
from tests.hlo import collectives

SHAPES = {"layer_0": (256, 64), "layer_1": (256, 64), "bias": (64,)}
SPLITS = {
    "fully sharded": {"layer_0": P("i"), "layer_1": P("i"), "bias": P("i")},
    "tensor parallel": {"layer_0": P(None, "i"), "layer_1": P(None, "i"), "bias": P("i")},
    "data parallel": {"layer_0": P(), "layer_1": P(), "bias": P()},
}
# Blocks of eight: whole ones on every device, whichever side is split.
DIRECTION = fgo.scale_by_kronecker_fisher(block_size=8)
OPTIMIZERS = {
    "direction": DIRECTION,
    "phases": fgo.target_acquisition(1e-3, transform=DIRECTION),
}
# What a measurement may send for each leaf: its two sketches.
SKETCH = 2 * 1024


def compiled(tx, specs, kind):
    mesh = jax.make_mesh((8,), ("i",), axis_types=(kind,))
    home = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put({name: jnp.ones(shape) for name, shape in SHAPES.items()}, home)
    step = jax.jit(tx.update)
    state = tx.init(params)
    updates, state = step(params, state, params)
    for name, sharding in home.items():
        assert updates[name].sharding.is_equivalent_to(sharding, updates[name].ndim), name
    with compilations.seen() as compiled_again:
        again = step(params, state, params)[1]
    assert not compiled_again, "the second step compiles again"
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), state, again)
    assert all(jax.tree.leaves(same)), "a state moves"
    return step.lower(params, state, params).compile().as_text()


def drawing():
    """The counter and the key of optax's noise. The noise itself would be most of a program."""

    def update(grads, state, params=None):
        key, _ = jax.random.split(state.rng_key)
        return grads, state._replace(count=state.count + 1, rng_key=key)

    return optax.GradientTransformation(optax.add_noise(0.1, 0.5, jax.random.key(0)).init, update)


def step_in_place(direction, specs, shape, kind, cut):
    """Two leaves of a stack: where their state lies at first it stays; one compilation."""
    mesh = jax.make_mesh(shape, ("i", "j"), axis_types=(kind,) * 2)
    params = {
        name: jax.device_put(jnp.ones((16, 8)) + n, NamedSharding(mesh, spec))
        for n, (name, spec) in enumerate(specs.items())
    }
    tx = fgo.precondition.chain(drawing(), direction)
    step = jax.jit(tx.update)
    state = tx.init(params)
    updates, after = step(params, state, params)
    with compilations.seen() as compiled_again:
        step(updates, after, params)
    assert not compiled_again, (kind, specs, "the second step compiles again")
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True)
    assert all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in pairs), (kind, specs)
    if shape[0] > 1 and specs["w_0"] == P("i") and not cut:
        whole = direction.init(params)
        kept = whole.second_moment[0].sharding.spec
        assert "i" in jax.tree.leaves(tuple(kept)), (kind, kept)

    @jax.jit
    def inside(params):
        def one(carry, _):
            return direction.update(params, carry)[1], None

        return jax.lax.scan(one, direction.init(params), None, length=3)[0]

    with jax.set_mesh(mesh):
        # On explicit axes a carry that moves is another type, and its program is never built.
        inside(params) if kind == AxisType.Auto else inside.lower(params)


def stay_in_place():
    for kind in (AxisType.Auto, AxisType.Explicit):
        rows, sides = {"w_0": P("i"), "w_1": P("i")}, {"w_0": P("i"), "w_1": P(None, "i")}
        both = {"w_0": P("i", "j"), "w_1": P("i", "j")}
        # An axis of one device splits nothing, wherever it is named.
        for shape, splits in (
            ((8, 1), (rows, sides)),
            ((1, 1), (both,)),
            ((4, 2), (rows, sides, both)),
        ):
            for specs in splits:
                for block_size in (4, 1024):
                    direction = fgo.scale_by_kronecker_fisher(block_size=block_size)
                    step_in_place(direction, specs, shape, kind, block_size == 4)


def dealt_out():
    """As many layers as devices, each in blocks longer than a shard: a device gets whole layers.

    Also where layers are one leaf, as `scan` makes them.
    """
    keys = jax.random.split(jax.random.key(0), 8)
    layers = {f"layer_{n}": jax.random.normal(key, (32, 16)) for n, key in enumerate(keys)}
    scanned = {"layers": jax.random.normal(keys[0], (8, 32, 16))}
    sides = optax.contrib.MuonDimensionNumbers(1, 2)
    kronecker = fgo.scale_by_kronecker_fisher(block_size=16)
    cases = {
        "kronecker": (kronecker, layers, P("i")),
        "fismo": (fgo.scale_by_fismo(block_size=16), layers, P("i")),
        "fismo, shards of whole blocks": (fgo.scale_by_fismo(block_size=4), layers, P("i")),
        "kronecker, scanned": (
            fgo.scale_by_kronecker_fisher(block_size=16, weight_dimension_numbers=sides),
            scanned,
            P(None, "i"),
        ),
        "kronecker, scanned, layers split": (
            fgo.scale_by_kronecker_fisher(block_size=16, weight_dimension_numbers=sides),
            scanned,
            P("j", "i"),
        ),
    }
    for name, (direction, layers, spec) in cases.items():
        alone = two_steps(direction, layers, direction.init(layers))[0]
        # The partitioner could take j, of two devices, for what splits two blocks of rows.
        kinds = (AxisType.Explicit,) if "j" in spec else (AxisType.Auto, AxisType.Explicit)
        for kind in kinds:
            shape = (4, 2) if "j" in spec else (8, 1)
            mesh = jax.make_mesh(shape, ("i", "j"), axis_types=(kind,) * 2)
            rows, everywhere = NamedSharding(mesh, spec), NamedSharding(mesh, P())
            params = jax.device_put(layers, rows)
            always, sometimes = moved(direction, params, direction.init(params), alone)
            # Else a number for each layer: whether it is finite.
            assert {c for c, size in always if size > 8} == {"all-to-all"}, (name, kind, always)
            assert not sometimes, (name, kind, sometimes)
            if name in ("kronecker", "fismo"):  # the state alone is split
                params = jax.device_put(layers, everywhere)
                homes = fgo.state_shardings(direction, params, rows)
                state = jax.device_put(direction.init(params), homes)
                always, sometimes = moved(direction, params, state, alone)
                collected = [(c, size) for c, size in always if c != "all-to-all"]
                assert collected == [("all-gather", 8 * 512)], (name, kind, always)
                assert not sometimes, (name, kind, sometimes)


def two_steps(direction, params, state):
    step = jax.jit(direction.update)
    updates, after = step(params, state, params)
    updates, after = step(jax.tree.map(jnp.sin, updates), after, params)
    return updates, after, step


def moved(direction, params, state, alone):
    """What travels, of an update that is that of one device and leaves the state in its place."""
    updates, after, step = two_steps(direction, params, state)
    size = max(np.abs(x).max() for x in alone.values())
    for name, x in alone.items():
        np.testing.assert_allclose(updates[name], x, rtol=0, atol=1e-5 * size)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), state, after)
    assert all(jax.tree.leaves(same)), "a state moves"
    return collectives(step.lower(params, state, params).compile().as_text())


def travel_little(name):
    for kind in (AxisType.Auto, AxisType.Explicit):
        for split, specs in SPLITS.items():
            always, sometimes = collectives(compiled(OPTIMIZERS[name], specs, kind))
            where = (kind, split, always, sometimes)
            # A number for each leaf of a stack: whether it is finite.
            assert all(c == "all-reduce" and size <= 2 for c, size in always), where
            if split == "data parallel":
                assert all(c == "all-gather" for c, _ in sometimes), where
                assert not always, where
            else:
                small = SHAPES["bias"][0]  # such leaves are collected whole
                # The partitioner does not say which axis is split, so the last is summed first.
                sketch = SKETCH if kind == AxisType.Explicit else 2 * SHAPES["layer_0"][0] * 32
                assert all(
                    (c == "all-reduce" and size <= sketch) or size == small for c, size in sometimes
                ), where


PARTS = {
    "direction": lambda: travel_little("direction"),
    "phases": lambda: travel_little("phases"),
    "dealt out": dealt_out,
    "places": stay_in_place,
}
