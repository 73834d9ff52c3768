"""scale_by_kfac on eight devices gives the numbers and keeps the shardings of one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from tests import draws


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(jnp.tanh(nn.Dense(8)(x)))
        return nn.Dense(4)(x)


def test_sharded_batches_and_kernels_give_the_result_of_one_device():
    """Sums of 16 rows in another order, through damped inverses of condition 1e3 or less."""
    x = draws.normal(4, 16, 6)
    params = draws.params(Net(), x[0])

    def fn(p, b):
        return Net().apply({"params": p}, b)

    def loss(p, b):
        return jnp.mean(jnp.sum(fn(p, b) ** 2, -1))

    # In blocks: the outputs of Dense_0 (8), the inputs and the bias of Dense_1 (9).
    options = dict(loss="squared_error", refresh_every=2, burn_in=1, b1=0.9, block_size=7)
    tx = fgo.scale_by_kfac(fn, **options)

    def step(tx, p, s, b, mean=lambda t: t):
        u, s = tx.update(mean(jax.grad(loss)(p, b)), s, p, batch=b)
        return jax.tree.map(lambda a, d: a - 0.1 * d, p, u), s

    def run(p, batches, take):
        s = tx.init(p)
        for b in batches:
            p, s = take(p, s, b)
        return p, s

    def error(one, many):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True)
        return max(float(np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()) for a, b in pairs)

    alone = run(params, x, jax.jit(lambda *a: step(tx, *a)))
    spec = {
        "Dense_0": {"kernel": P(None, "model"), "bias": P("model")},
        "Dense_1": {"kernel": P("model", None), "bias": P(None)},
        "LayerNorm_0": {"scale": P("model"), "bias": P("model")},
    }
    take = jax.jit(lambda *a: step(tx, *a))
    # A mesh of explicit axes runs whatever the model runs on it, here with replicated kernels.
    for kind in (AxisType.Explicit, AxisType.Auto):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
        whole = jax.tree.map(lambda p: P(*(None,) * p.ndim), params)
        home = jax.tree.map(
            functools.partial(NamedSharding, mesh),
            whole if kind == AxisType.Explicit else spec,
            is_leaf=lambda s: isinstance(s, P),
        )
        data = jax.device_put(x, NamedSharding(mesh, P(None, "data")))
        placed = jax.device_put(params, home)
        with jax.set_mesh(mesh):
            many = run(placed, data, take)
        assert error(alone, many) < 1e-4, error(alone, many)
        for tree in (many[0], many[1].direction):
            jax.tree.map(lambda a, h: a.sharding.is_equivalent_to(h, a.ndim) or 1 / 0, tree, home)
        shardings = [leaf.sharding for leaf in jax.tree.leaves(many[1].factors)]
        assert kind == AxisType.Auto or all(s.is_fully_replicated for s in shardings)

    # Sharded kernels in their product with the roots, where axes are explicit.
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    kernel = jax.device_put(params["Dense_1"]["kernel"], NamedSharding(mesh, P("model", "data")))
    grads = {"Dense_1": {"kernel": kernel, "bias": jnp.ones(4)}}
    state = alone[1]._replace(factors=alone[1].factors[1:2], roots=alone[1].roots[1:2])
    with jax.set_mesh(mesh):
        row = jax.jit(tx.metric)(grads, state)["Dense_1"]["kernel"]
    single = tx.metric(jax.tree.map(np.asarray, grads), state)["Dense_1"]["kernel"]
    assert row.sharding.is_equivalent_to(kernel.sharding, 2)
    assert error(single, row) < 1e-4

    def both(carry, b):
        return step(tx, *carry, b), None

    scanned = jax.jit(lambda p, d: jax.lax.scan(both, (p, tx.init(p)), d)[0])(placed, data)
    assert error(alone, scanned) < 1e-4

    # The devices' own batches and labels: the factors are averaged over them.
    flat = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    axis = fgo.scale_by_kfac(fn, axis_name="i", **options)

    def mean(t):
        return jax.lax.pmean(t, "i")

    mapped = jax.jit(
        jax.shard_map(
            lambda p, s, b: step(axis, p, s, b, mean),
            mesh=flat,
            in_specs=(P(), P(), P("i")),
            out_specs=(P(), P()),
            check_vma=False,
        )
    )
    _, s = run(params, x, mapped)
    a = alone[1].factors[0][0][0]  # is made of inputs alone: no labels differ
    assert np.abs(np.asarray(s.factors[0][0][0]) - a).max() < 1e-5
    copies = [np.asarray(c.data) for c in s.factors[1][0][1].addressable_shards]
    assert all((c == copies[0]).all() for c in copies)
