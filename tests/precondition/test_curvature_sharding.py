"""Eight devices give the numbers of one and keep every sharding: transforms that measure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo

specs = {"w": P("data", "model"), "k": P(None, "model", None)}
shapes = {"w": (8, 16), "k": (4, 4, 3)}
rng = np.random.default_rng(0)
grads = [{k: rng.normal(size=s).astype("f4") for k, s in shapes.items()} for _ in range(4)]
params = {k: rng.normal(size=s).astype("f4") for k, s in shapes.items()}
batch = rng.normal(size=(32, 8)).astype("f4")


def predict(p, batch):
    hidden = jnp.tanh(batch @ p["w"])
    return jnp.einsum("nab,abc->nc", hidden.reshape(-1, 4, 4), p["k"])


MAKE = {
    "low_rank": lambda: fgo.scale_by_low_rank_fisher(
        fgo.curvature.sampled_fisher(predict), rank=3, num_steps=8, every=2
    ),
    "bartlett": lambda: fgo.scale_by_diagonal_fisher(predict, every=2),
    "hutchinson": lambda: fgo.scale_by_diagonal_fisher(predict, estimator="hutchinson", every=2),
    "layer_noise": lambda: fgo.scale_by_layer_noise(optax.trace(0.9), every=1),
    "levelled": lambda: optax.chain(optax.scale_by_adam(), fgo.orthogonalise()),
    "primal": lambda: optax.chain(optax.trace(0.9), fgo.scale_by_primal_averaging(0.9, 0.7)),
}


@pytest.mark.parametrize("name", MAKE)
def test_eight_devices_give_the_result_of_one(name):
    tx = MAKE[name]()
    update = jax.jit(lambda g, s, p, b: tx.update(g, s, p, batch=b))

    def run(put, put_batch, put_rest):
        p = put(params)
        state = first = jax.tree.map(put_rest, tx.init(p))
        out = []
        for g in grads:
            u, state = update(put(g), state, p, put_batch(batch))
            out.append((u, state))
        return first, out

    _, alone = run(lambda tree: tree, lambda b: b, lambda x: x)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    home = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    everywhere = NamedSharding(mesh, P())
    first, together = run(
        lambda tree: jax.device_put(tree, home),
        lambda b: jax.device_put(b, NamedSharding(mesh, P("data"))),
        # What init made on the mesh lies there already.
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, everywhere),
    )
    for step, (one, many) in enumerate(zip(alone, together, strict=True)):
        for k in shapes:
            assert many[0][k].sharding.is_equivalent_to(home[k], len(shapes[k])), (step, k)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(many[1]), strict=True):
            assert b.sharding.is_equivalent_to(a.sharding, a.ndim), (step, a.shape, b.sharding)
        for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(many[0]), strict=True):
            error = np.abs(np.asarray(a) - np.asarray(b)).max()
            assert error < 1e-3, (step, a.shape, error)
    sharded = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(first))
    assert sharded == 4, sharded  # two fields, two leaves
