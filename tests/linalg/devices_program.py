"""What test_devices.py runs on eight devices: every reading against that of one device."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from fgo_jax import probes
from tests.problems import mlp_batch, mlp_params

BATCH = mlp_batch(0, 64)
# Two leaves: all are on every device, and each one more is more to compile.
PARAMS = {name: {"kernel": layer["kernel"]} for name, layer in mlp_params().items()}


def mesh():
    return jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))


def checked(f):
    return jax.jit(jax.shard_map(f, mesh=mesh(), in_specs=(P(), P("i")), out_specs=P()))


def unchecked(f):
    return jax.jit(
        jax.shard_map(f, mesh=mesh(), in_specs=(P(), P("i")), out_specs=P(), check_vma=False)
    )


def split(batch):
    return jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)


def alike(tree):
    """The value of the first device, once it is known that all devices have the same."""
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape)), tree)
    return jax.tree.map(lambda x: x[0], tree)


def mapped(f):
    run = jax.pmap(f, axis_name="i", in_axes=(None, 0))
    return lambda params, batch: alike(run(params, split(batch)))


def batched(f):
    run = jax.jit(jax.vmap(f, axis_name="i", in_axes=(None, 0)))
    return lambda params, batch: alike(run(params, split(batch)))


WAYS = {"checked": checked, "unchecked": unchecked, "pmap": mapped, "vmap": batched}


def close(one, many, rtol=2e-4):
    largest = max(np.max(np.abs(x)) for x in jax.tree.leaves(one))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * largest * 0.01),
        one,
        many,
    )


def predict(params, batch):
    return jnp.tanh(batch["x"] @ params["hidden"]["kernel"]) @ params["out"]["kernel"]


def losses(params, batch):
    logits = predict(params, batch)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def own(params, batch):
    """An operator that knows nothing of devices."""
    gradient = jax.grad(lambda p: jnp.mean(losses(p, batch)))
    return lambda vector: jax.jvp(gradient, (params,), (vector,))[1]


def own_rows(params, batch):
    return jax.vmap(
        lambda e: jax.grad(lambda p: losses(p, jax.tree.map(lambda x: x[None], e))[0])(params)
    )(batch)


MASK = {"hidden": True, "out": False}
OPERATORS = {
    "ggn": fgo.curvature.ggn(predict),
    "ggn in chunks": fgo.curvature.ggn(predict, chunk_size=4),
    "ggn, masked": fgo.curvature.ggn(predict, mask=MASK),
    "ggn, own loss": fgo.curvature.ggn(
        predict, lambda z, b: optax.softmax_cross_entropy_with_integer_labels(z, b["y"])
    ),
    "hessian": fgo.curvature.hessian(losses),
    "hessian in chunks": fgo.curvature.hessian(losses, chunk_size=4),
    "empirical_fisher": fgo.curvature.empirical_fisher(losses),
    "own": own,
}


def products(params, batch):
    vector = jax.tree.map(jnp.cos, PARAMS)
    return {name: operator(params, batch)(vector) for name, operator in OPERATORS.items()}


def drawn(params, batch, key):
    return fgo.curvature.sampled_fisher(predict)(params, batch, key=key)(PARAMS)


@functools.cache
def on_one_device():
    return jax.jit(lambda: (products(PARAMS, BATCH), drawn(PARAMS, BATCH, jax.random.key(0))))()


def operators(way):
    """Called by hand: the product is of the device's own batch, so its mean is of the whole."""

    def mean(params, batch):
        found = products(params, batch)
        if way == "checked":
            del found["own"]  # without a probe to bind it, its gradients are JAX's own business
        key = jax.random.fold_in(jax.random.key(0), jax.lax.axis_index("i"))
        return jax.lax.pmean((found, drawn(params, batch, key)), "i")

    one, sampled = on_one_device()
    many, sampled_by_many = WAYS[way](mean)(PARAMS, BATCH)
    for name, product in many.items():
        close(one[name], product)
    # Other labels are drawn, so only the size can be compared.
    ratio = optax.tree.norm(sampled_by_many) / optax.tree.norm(sampled)
    assert 0.3 < ratio < 3.0, ratio


def readings(probe, axis_name):
    def read(params, batch):
        key = jax.random.key(3)
        inputs = probes.ProbeInputs(None, None, params, batch, key, jnp.int32(200), axis_name)
        return probe.read(probe.measure(inputs, probe.init(params)))

    return read


def probes_of(examples):
    rows = probes.example_gradients(lambda p, e: losses(p, jax.tree.map(lambda x: x[None], e))[0])
    groups = probes.layer_groups(PARAMS)
    return {
        "hutchinson": probes.hutchinson(OPERATORS["ggn"], examples=examples, groups=groups),
        "hutchinson, own": probes.hutchinson(own, examples=examples, num_samples=8),
        "hutchinson, deflated": probes.hutchinson(OPERATORS["ggn"], examples=examples, deflate=3),
        "lanczos": probes.lanczos(OPERATORS["ggn"], 16, examples=examples),
        "gram": probes.gram(rows, examples=examples, groups=groups),
        "gram, uncentred": probes.gram(own_rows, examples=examples, centred=False),
    }


def all_readings(examples, axis_name, params, batch):
    return {
        name: readings(probe, axis_name)(params, batch)
        for name, probe in probes_of(examples).items()
    }


# Each device reads its own eight examples. The halves of one device are those of all.
HALVES = jax.tree.map(lambda x: x.reshape(8, 2, 4, *x.shape[1:]).swapaxes(0, 1), BATCH)
WHOLE = jax.tree.map(lambda x: x.reshape(64, *x.shape[3:]), HALVES)


@functools.cache
def read_by_one():
    return jax.jit(functools.partial(all_readings, 64, None))(PARAMS, WHOLE)


def all_probes(way):
    sampled = probes.lanczos(fgo.curvature.sampled_fisher(predict), 8, examples=8)

    def read(params, batch):
        found = all_readings(8, "i", params, batch)
        return found, readings(sampled, "i")(params, batch)["trace"].value

    one = read_by_one()
    many, trace = WAYS[way](read)(PARAMS, BATCH)
    for name, truth in one.items():
        for signal in truth:
            close(tuple(truth[signal]), tuple(many[name][signal]), rtol=5e-3)
    if way == "checked":  # the other ways sum no gradients
        defect = [
            f(readings(probes.commutator(losses, pairs=1, examples=n), axis))(PARAMS, data)
            for f, n, axis, data in ((jax.jit, 64, None, WHOLE), (checked, 8, "i", BATCH))
        ]
        close(*(found["commutator_defect"].value for found in defect), rtol=5e-3)
    exact = one["lanczos"]["trace"].value
    assert 0.5 < trace / exact < 2.0, (trace, exact)


def trained(examples, axis_name, mean, params, batch):
    adam = optax.scale_by_adam()
    phases = [fgo.acquisition(0.01, transform=adam), fgo.execution(0.01, transform=adam)]
    probe = probes.lanczos(OPERATORS["ggn"], 8, every=2, examples=examples)
    tx = fgo.phased(phases, [fgo.triggers.after(3)], probe, axis_name=axis_name)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: jnp.mean(losses(p, batch)))(params)
        updates, state = tx.update(mean(grads), state, params, value=value, batch=batch)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=5)
    return params, {k: v for k, v in state.signals.items() if k != "value"}


@functools.cache
def trained_by_one():
    return jax.jit(functools.partial(trained, 64, None, lambda grads: grads))(PARAMS, BATCH)


def training(way):
    """The axis is named once, for the controller; devices and their parameters stay alike."""

    def mean(grads):
        if way == "checked":  # there JAX has summed them over the devices already
            return jax.tree.map(lambda g: g / 8, grads)
        return jax.lax.pmean(grads, "i")

    expected = trained_by_one()
    found = WAYS[way](functools.partial(trained, 8, "i", mean))(PARAMS, BATCH)
    close(expected[0], found[0], rtol=1e-2)
    close(expected[1]["trace"], found[1]["trace"], rtol=1e-2)
    if way == "checked":
        unnamed = checked(readings(probes.lanczos(OPERATORS["ggn"], 8, examples=8), None))
        with pytest.raises(ValueError, match="pass axis_name='i'"):
            unnamed(PARAMS, BATCH)


class Net(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(5, 6)(tokens).mean(1)
        return nn.Dense(3)(jnp.tanh(nn.LayerNorm()(nn.Dense(8)(x))))


def predict_net(params, tokens):
    return Net().apply({"params": params}, tokens)


def all_transforms(axis, params, batch, net, tokens):
    """Updates of those that take an operator, curvatures of those that draw labels."""
    ggn = OPERATORS["ggn"]

    def first(tx, params, batch):
        return tx.update(params, tx.init(params), params, batch=batch)

    updates = [
        first(tx, params, batch)[0]
        for tx in (
            fgo.scale_by_diagonal_fisher(operator=ggn, **axis),
            fgo.scale_by_low_rank_fisher(ggn, rank=4, num_steps=12, **axis),
        )
    ]
    diagonal = first(fgo.scale_by_diagonal_fisher(predict_net, **axis), net, tokens)[1].diagonal
    factors = first(fgo.scale_by_kfac(predict_net, **axis), net, tokens)[1].factors
    return updates, diagonal, factors


TOKENS = jax.random.randint(jax.random.key(0), (64, 3), 0, 5)


@functools.cache
def net():
    return jax.jit(Net().init)(jax.random.key(1), TOKENS)["params"]


@functools.cache
def transformed_by_one():
    params = net()
    return jax.jit(lambda: all_transforms({}, PARAMS, BATCH, params, TOKENS))()


def transforms(way):
    def both(params, data):
        return all_transforms({"axis_name": "i"}, params[0], data[0], params[1], data[1])

    updates, *curvatures = transformed_by_one()
    updates_of_many, *of_many = WAYS[way](both)((PARAMS, net()), (BATCH, TOKENS))
    for one, many in zip(updates, updates_of_many, strict=True):
        close(one, many, rtol=2e-2)
    # Devices draw labels of their own, so sizes are compared; inputs' factors are exact.
    pairs = zip(jax.tree.leaves(curvatures), jax.tree.leaves(of_many), strict=True)
    for a, b in pairs:
        a, b = np.sum(np.abs(a)), np.sum(np.abs(b))
        assert abs(a - b) <= 0.7 * max(a, b), (a, b)
    (_, factors), (_, factors_of_many) = curvatures, of_many
    close(factors[1][0][0], factors_of_many[1][0][0], rtol=1e-3)


PARTS = {
    "operators": operators, "probes": all_probes, "training": training, "transforms": transforms,
}  # fmt: skip
