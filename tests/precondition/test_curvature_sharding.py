"""The transforms that run a model: eight devices give the numbers of one and keep every sharding."""

import os
import subprocess
import sys

import pytest

SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import fgo_jax as fgo

specs = {"w": P("data", "model"), "v": P("model", None), "b": P(), "k": P(None, "model", None)}
shapes = {"w": (8, 16), "v": (16, 4), "b": (4,), "k": (3, 4, 2)}
rng = np.random.default_rng(0)
grads = [{k: rng.normal(size=s).astype("f4") for k, s in shapes.items()} for _ in range(4)]
params = {k: rng.normal(size=s).astype("f4") for k, s in shapes.items()}
batch = rng.normal(size=(32, 8)).astype("f4")

def predict(p, batch):
    hidden = jnp.tanh(batch @ p["w"])
    return hidden @ p["v"] + p["b"][None] * jnp.sum(p["k"] ** 2)

MAKE = {
    "low_rank": lambda: fgo.scale_by_low_rank_fisher(
        fgo.curvature.ggn(predict), rank=3, num_steps=8, every=2),
    "drawn": lambda: fgo.scale_by_low_rank_fisher(
        fgo.curvature.sampled_fisher(predict), rank=3, num_steps=8, every=2),
    "bartlett": lambda: fgo.scale_by_diagonal_fisher(predict, every=2),
    "hutchinson": lambda: fgo.scale_by_diagonal_fisher(predict, estimator="hutchinson", every=2),
}
tx = MAKE[sys.argv[1]]()
update = jax.jit(lambda g, s, p, b: tx.update(g, s, p, batch=b))

def run(put, put_batch):
    p = put(params)
    state, out = tx.init(p), []
    first = state
    for g in grads:
        u, state = update(put(g), state, p, put_batch(batch))
        out.append((u, state))
    return first, out

_, alone = run(lambda tree: tree, lambda b: b)
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
home = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
first, together = run(
    lambda tree: jax.device_put(tree, home),
    lambda b: jax.device_put(b, NamedSharding(mesh, P("data"))),
)
for step, (one, many) in enumerate(zip(alone, together)):
    for k in shapes:
        assert many[0][k].sharding.is_equivalent_to(home[k], len(shapes[k])), (step, k)
    # What was sharded from init on stays so, what was on one device is the same on all.
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(many[1])):
        if isinstance(a.sharding, NamedSharding):
            assert b.sharding.is_equivalent_to(a.sharding, a.ndim), (step, a.shape, b.sharding)
        else:
            assert b.sharding.is_fully_replicated, (step, a.shape, b.sharding)
    for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(many[0])):
        error = np.abs(np.asarray(a) - np.asarray(b)).max()
        assert error < 1e-3, (step, a.shape, error)
print("sharded as one")
"""


@pytest.mark.parametrize("name", ["low_rank", "drawn", "bartlett", "hutchinson"])
def test_eight_devices_give_the_result_of_one(name):
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, name], env=env, capture_output=True, text=True, timeout=120
    )
    assert "sharded as one" in done.stdout, done.stdout + done.stderr[-3000:]
