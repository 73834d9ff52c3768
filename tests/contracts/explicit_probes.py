"""What test_explicit.py runs on four devices: probes and spectra on a mesh with explicit axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo

SPECS = {"first": P("data", "model"), "bias": P("model"), "last": P()}
SHAPES = {"first": (4, 6), "bias": (6,), "last": (6, 3)}
rng = np.random.default_rng(0)
PARAMS = {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES.items()}
BATCH = {"x": rng.normal(size=(64, 4)).astype("f4"), "y": rng.integers(0, 3, 64)}


def predict(params, batch, examples):
    """A network. On explicit axes it says along which axis its examples are split."""
    on_mesh = bool(jax.typeof(params["first"]).sharding.mesh.explicit_axes)
    inner, outer = (P(examples, "model"), P(examples)) if on_mesh else (None, None)
    hidden = jnp.matmul(batch["x"], params["first"], out_sharding=inner) + params["bias"]
    return jnp.matmul(jnp.tanh(hidden), params["last"], out_sharding=outer)


def loss(params, batch, examples):
    outputs = predict(params, batch, examples)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"]).mean()


def gradients(params, batch):
    def of_one(params, x, y):
        return loss(params, {"x": x[None], "y": y[None]}, None)

    return jax.vmap(jax.grad(of_one), (None, 0, 0))(params, batch["x"], batch["y"])


def measured(probes, loss, params, batch):
    """What each probe has measured after three steps, by name; one program measures with all."""
    adam, joined = optax.scale_by_adam(), fgo.probes.joined(*probes.values())
    tx = fgo.phased([fgo.acquisition(1e-2, transform=adam)], [], joined)
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, batch=batch)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state, batch)
    read = {
        name: {signal: float(estimate.value) for signal, estimate in probe.read(own).items()}
        for (name, probe), own in zip(probes.items(), state.probe_state.members, strict=True)
    }
    return read | {"state": {name: float(signal[0]) for name, signal in state.signals.items()}}


def spectrum(operator, params, batch):
    found = fgo.spectrum(operator, params, batch, num_steps=8, top=3)
    return {"trace": float(found.trace.value), "top": float(found.top_eigenvalue.value)}


def readings(params, batch, examples):
    """Everything that is read, by name; per-example gradients where examples are not split."""
    of_batch = functools.partial(loss, examples=examples)
    fisher = fgo.curvature.ggn(functools.partial(predict, examples=examples))
    hessian = fgo.curvature.hessian(of_batch)
    probes = {
        "gradient_stream": fgo.probes.gradient_stream(pairs=4),
        "lanczos": fgo.probes.lanczos(fisher, num_steps=4, every=1),
        "hutchinson": fgo.probes.hutchinson(fisher, every=1),
        "trajectory": fgo.probes.trajectory(),
    }
    if examples is None:
        probes["gram"] = fgo.probes.gram(gradients, every=1)
        probes["commutator"] = fgo.probes.commutator(of_batch, every=1)
    operators = {"ggn": fisher, "hessian": hessian}
    spectra = {name: spectrum(operator, params, batch) for name, operator in operators.items()}
    return measured(probes, of_batch, params, batch) | spectra


def main():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    home = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    alone = readings(jax.tree.map(jnp.asarray, PARAMS), jax.tree.map(jnp.asarray, BATCH), None)
    for examples in (None, "data"):
        batch = jax.device_put(BATCH, NamedSharding(mesh, P(examples)))
        with jax.set_mesh(mesh):
            together = readings(jax.device_put(PARAMS, home), batch, examples)
        for name, found in together.items():
            for signal, value in found.items():
                wanted = alone[name][signal]
                np.testing.assert_allclose(value, wanted, 1e-3, 1e-5, err_msg=f"{name} {signal}")
