"""What test_many_devices.py runs on eight devices: training there is training on one device.

More seeds, by hand, with XLA_FLAGS=--xla_force_host_platform_device_count=8:

    python -m tests.many_devices_program 10
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo

STEPS, BATCH, WIDTH, CLASSES = 201, 64, 32, 8
# Two alike, which are one stack, and one bias for all: each leaf is a tenth more to compile.
SHAPES = {
    "layer_0": {"kernel": (WIDTH, WIDTH), "bias": (WIDTH,)},
    "layer_1": {"kernel": (WIDTH, WIDTH)},
    "out": {"kernel": (WIDTH, CLASSES)},
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
    x = jnp.tanh(batch["x"] @ params["layer_0"]["kernel"] + params["layer_0"]["bias"])
    logits = jnp.tanh(x @ params["layer_1"]["kernel"]) @ params["out"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


@functools.cache
def optimizer():
    direction = fgo.scale_by_kronecker_fisher(block_size=8)
    probe = fgo.probes.gradient_stream(pairs=4)  # half of the default: phases end earlier
    return fgo.target_acquisition(
        1e-2, 5, transform=direction, probe=probe, handover_steps=10, average_weights=0.1
    )


@jax.jit
def start(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    params = {
        name: {"kernel": jax.random.normal(key, parts["kernel"]) / parts["kernel"][0] ** 0.5}
        for key, (name, parts) in zip(keys, SHAPES.items(), strict=True)
    }
    params["layer_0"]["bias"] = jnp.zeros(SHAPES["layer_0"]["bias"])
    return params


@jax.jit
def batches(seed):
    key = jax.random.key(1000 + seed)
    x = jax.random.normal(key, (STEPS, BATCH, WIDTH))
    teacher = jax.random.normal(jax.random.fold_in(key, 1), (WIDTH, CLASSES))
    noise = jax.random.gumbel(jax.random.fold_in(key, 2), (STEPS, BATCH, CLASSES))
    return {"x": x, "y": jnp.argmax(x @ teacher + 2 * noise, axis=-1)}


def step(carry, batch):
    params, state = carry
    value, grads = jax.value_and_grad(loss_of)(params, batch)
    updates, state = optimizer().update(grads, state, params, value=value)
    return (optax.apply_updates(params, updates), state), fgo.telemetry(state)


@jax.jit
def run(carry, data, first, last):
    """The (params, state) after the steps from `first` to `last`, and the telemetry after each.

    One program for a step and for all of them.
    """

    def batch_of(number):
        return jax.tree.map(lambda x: x[number], data)

    def one(number, loop):
        carry, told = loop
        carry, now = step(carry, batch_of(number))
        return carry, jax.tree.map(lambda all, x: all.at[number].set(x), told, now)

    shapes = jax.eval_shape(step, carry, batch_of(0))[1]
    told = jax.tree.map(lambda x: jnp.zeros((STEPS, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(first, last, one, (carry, told))


def apart(a, b):
    """The norm of the difference over the norm."""
    difference = optax.tree.norm(jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), a, b))
    return float(difference / optax.tree.norm(jax.tree.map(np.asarray, a)))


def placed(layout, kind):
    """Functions that put parameters and data where the layout wants them."""
    shape, batch, kernel, bias = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)

    def params(tree):
        specs = jax.tree.map(lambda x: kernel if x.ndim == 2 else bias, tree)
        return jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))

    def data(tree):
        return jax.device_put(tree, NamedSharding(mesh, P(None, *batch)))

    return params, data


def is_at(x, home):
    return x.sharding.is_equivalent_to(home, x.ndim)


def check_one_step(number, carry, data, layout):
    """From the same state, with everything placed anew."""
    put, put_data, homes = layout
    params, state = carry
    (expected, _), told = run(carry, data, number, number + 1)
    begin = put(params), jax.device_put(jax.device_get(state), homes)
    (found, _), heard = run(begin, put_data(data), number, number + 1)
    assert apart(expected, found) < 1e-5, (number, apart(expected, found))
    for leaf, old in zip(jax.tree.leaves(found), jax.tree.leaves(begin[0]), strict=True):
        assert is_at(leaf, old.sharding)
    for key, value in told.items():
        now, then = np.asarray(heard[key])[number], np.asarray(value)[number]
        np.testing.assert_allclose(then, now, rtol=1e-3, atol=1e-5, err_msg=key)


def main(seeds):
    layouts = {}
    for name, kind in KINDS:
        put, put_data = placed(name, kind)
        params = put(start(0))
        homes = fgo.state_shardings(optimizer(), params)
        state = optimizer().init(params)
        assert jax.tree.all(jax.tree.map(is_at, state, homes)), (name, kind)
        layouts[name, kind] = put, put_data, homes
    for seed in seeds:
        params, data = start(seed), batches(seed)
        begin = params, optimizer().init(params)
        _, told = run(begin, data, 0, STEPS)
        phases = np.asarray(told["phase"])
        begins = np.flatnonzero(np.diff(phases)) + 1
        last = min(int(begins[-1]) + 10, STEPS)  # nothing is decided after that
        numbers = (0, 1, 50, 200) if seed == seeds[0] else ()
        carries = {number: run(begin, data, 0, number)[0] for number in numbers}
        print("seed", seed, "phases begin at", begins)
        for which, layout in layouts.items():
            put, put_data, _ = layout
            for number, before in carries.items():
                check_one_step(number, before, data, layout)
            carry = put(params), optimizer().init(put(params))
            _, heard = run(carry, put_data(data), 0, last)
            found = np.asarray(heard["phase"])[:last]
            np.testing.assert_array_equal(phases[:last], found, err_msg=str(which))


if __name__ == "__main__":
    main(range(int(sys.argv[1])))
