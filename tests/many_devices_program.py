"""What test_many_devices.py runs on eight devices: training there is training on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo

STEPS, BATCH, CLASSES = 200, 64, 8
SHAPES = {
    "layer_0": {"kernel": (16, 32), "bias": (32,)},
    "layer_1": {"kernel": (32, 32), "bias": (32,)},
    "layer_2": {"kernel": (32, 32), "bias": (32,)},
    "out": {"kernel": (32, CLASSES), "bias": (CLASSES,)},
}
# Mesh, spec of a batch, spec of a kernel, spec of a bias. Kernels are cut into blocks of eight.
LAYOUTS = {
    "data parallel": ((8, 1), P("data"), P(), P()),
    "fully sharded": ((8, 1), P("data"), P("data"), P("data")),
    "tensor parallel": ((1, 8), P(), P(None, "model"), P("model")),
    "2 x 4": ((2, 4), P("data"), P("data", "model"), P("model")),
}

KINDS = [(name, AxisType.Auto) for name in LAYOUTS] + [("data parallel", AxisType.Explicit)]


def loss_of(params, batch):
    x = batch["x"]
    for name in ("layer_0", "layer_1", "layer_2"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    logits = x @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def optimizer():
    direction = fgo.scale_by_kronecker_fisher(block_size=8)
    return fgo.target_acquisition(
        1e-2, 5, transform=direction, handover_steps=10, average_weights=0.1
    )


def start(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: {
            "kernel": jax.random.normal(key, parts["kernel"]) / parts["kernel"][0] ** 0.5,
            "bias": jnp.zeros(parts["bias"]),
        }
        for key, (name, parts) in zip(keys, SHAPES.items(), strict=True)
    }


def batches(seed):
    key = jax.random.key(1000 + seed)
    x = jax.random.normal(key, (STEPS, BATCH, 16))
    teacher = jax.random.normal(jax.random.fold_in(key, 1), (16, CLASSES))
    noise = jax.random.gumbel(jax.random.fold_in(key, 2), (STEPS, BATCH, CLASSES))
    return {"x": x, "y": jnp.argmax(x @ teacher + 2 * noise, axis=-1)}


def step(carry, batch):
    params, state = carry
    value, grads = jax.value_and_grad(loss_of)(params, batch)
    updates, state = optimizer().update(grads, state, params, value=value)
    return (optax.apply_updates(params, updates), state), fgo.telemetry(state)


@jax.jit
def run(carry, data):
    """The last (params, state), and the telemetry after every step."""
    return jax.lax.scan(step, carry, data)


one_step = jax.jit(step)


def before(numbers, carry, data):
    """(params, state) before each of these steps, and the step's batch."""
    for number in range(max(numbers) + 1):
        batch = jax.tree.map(lambda x, n=number: x[n], data)
        if number in numbers:
            yield carry, batch
        carry, _ = one_step(carry, batch)


def apart(a, b):
    """The norm of the difference over the norm."""
    difference = optax.tree.norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))
    return float(difference / optax.tree.norm(jax.tree.map(np.asarray, a)))


def placed(layout, kind):
    """Functions that put parameters and batches where the layout wants them."""
    shape, batch, kernel, bias = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)

    def params(tree):
        specs = jax.tree.map(lambda x: kernel if x.ndim == 2 else bias, tree)
        return jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))

    def data(tree):
        return jax.device_put(tree, NamedSharding(mesh, P(None, *batch)))

    def single(tree):
        return jax.device_put(tree, NamedSharding(mesh, batch))

    return params, data, single


def is_at(x, home):
    return x.sharding.is_equivalent_to(home, x.ndim)


def check_one_step(carry, batch, layout):
    """From the same state, with everything placed anew."""
    put, _, put_batch, homes = layout
    params, state = carry
    (expected, _), told = one_step(carry, batch)
    (found, _), heard = one_step((put(params), jax.device_put(state, homes)), put_batch(batch))
    assert apart(expected, found) < 1e-5, (int(told["total_step"]), apart(expected, found))
    for leaf, old in zip(jax.tree.leaves(found), jax.tree.leaves(put(params)), strict=True):
        assert is_at(leaf, old.sharding)
    for key, value in told.items():
        np.testing.assert_allclose(value, heard[key], rtol=1e-3, atol=1e-5, err_msg=key)


def main(seeds):
    layouts = {}
    for name, kind in KINDS:
        put, *others = placed(name, kind)
        params = put(start(0))
        homes = fgo.state_shardings(optimizer(), params)
        state = optimizer().init(params)
        assert jax.tree.all(jax.tree.map(is_at, state, homes)), (name, kind)
        layouts[name, kind] = put, *others, homes
    for seed in range(seeds):
        params, data = start(seed), batches(seed)
        begin = params, optimizer().init(params)
        (alone, _), told = run(begin, data)
        phases = np.asarray(told["phase"])
        steps = list(before((0, 1, 50), begin, data)) if seed == 0 else []
        print("seed", seed, "phases begin at", np.flatnonzero(np.diff(phases)) + 1)
        for which, layout in layouts.items():
            put, put_data, *_ = layout
            for carry, batch in steps:
                check_one_step(carry, batch, layout)
            (together, _), heard = run((put(params), optimizer().init(put(params))), put_data(data))
            np.testing.assert_array_equal(phases, heard["phase"], err_msg=str(which))
            print("  ", which, "after all steps", apart(alone, together))
