"""What test_explicit.py runs on four devices: rows of the table on a mesh with explicit axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from tests import compilations
from tests.contracts.table import TABLE

# Two lengths of axis: each is a decomposition more to compile.
SHAPES = {"matrix": (4, 2), "vector": (4,), "scalar": (), "kernel": (2, 2, 4)}
SPECS = {"matrix": P("data", "model"), "vector": P("model"), "scalar": P(),
         "kernel": P(None, None, "model")}  # fmt: skip
# The counter of `optax.adam` begins off the mesh, so its second step would compile again.
WITH_ADAM = {
    "average_weights", "clip_by_softmax_radius", "orthogonalise", "scale_by_friction_limit",
    "scale_by_primal_averaging", "slow_momentum",
}  # fmt: skip


def gradients(count):
    rng = np.random.default_rng(0)
    return [
        {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


def check_places(state, homes):
    """Where the state should lie, known in the abstract, is where it lies."""
    for x, home in zip(jax.tree.leaves(state), jax.tree.leaves(homes), strict=True):
        there = isinstance(x.sharding, NamedSharding)  # a counter of optax's own is on one device
        assert x.sharding.is_equivalent_to(home, x.ndim) if there else home.is_fully_replicated


def run(row, put):
    """The updates of three steps; the last two compile nothing."""
    tx = row.make(row.learning_rate)
    first, *others = map(put, gradients(4))
    params, state, out = first, tx.init(first), []
    if isinstance(first["matrix"].sharding, NamedSharding):
        homes = fgo.state_shardings(tx, first)
        check_places(state, homes)
        state = jax.device_put(state, homes) if str(row) in WITH_ADAM else state
    update, apply = jax.jit(tx.update), jax.jit(optax.apply_updates)
    for number, grads in enumerate(others):
        with compilations.seen() as compiled:
            updates, state = update(grads, state, params, **row.extras)
            params = apply(params, updates)
        assert number == 0 or not compiled, (str(row), len(compiled))
        out.append(updates)
    return out


def main():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    home = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    for row in TABLE:
        alone = run(row, lambda tree: jax.tree.map(jnp.asarray, tree))
        together = run(row, lambda tree: jax.device_put(tree, home))
        for step, (one, many) in enumerate(zip(alone, together, strict=True)):
            for name in SHAPES:
                assert many[name].sharding.is_equivalent_to(home[name], len(SHAPES[name])), (
                    row,
                    name,
                )
                size = np.abs(one[name]).max()
                error = np.abs(np.asarray(many[name]) - np.asarray(one[name])).max()
                assert error <= 1e-4 * size, (str(row), step, name, error, size)
