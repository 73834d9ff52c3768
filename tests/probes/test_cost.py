"""Between its measurements a probe runs nothing, and masked parameters are refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from fgo_jax.linalg import sketch
from fgo_jax.probes.probe import ProbeInputs
from tests.hlo import computations, reached
from tests.problems import mlp, mlp_batch, mlp_loss, mlp_params

MARK = "the_probe_runs"


def predict(params, batch):
    with jax.named_scope(MARK):
        return mlp(params, batch["x"])


def example_loss(params, example):
    with jax.named_scope(MARK):
        return -jax.nn.log_softmax(mlp(params, example["x"][None])[0])[example["y"]]


def batch_loss(params, batch):
    with jax.named_scope(MARK):
        return mlp_loss(params, batch)


PROBES = {
    "gradient_stream": lambda: fgo.probes.gradient_stream(),
    "lanczos": lambda: fgo.probes.lanczos(fgo.curvature.ggn(predict), num_steps=3, every=50),
    "hutchinson": lambda: fgo.probes.hutchinson(fgo.curvature.ggn(predict), every=50, deflate=1),
    "gram": lambda: fgo.probes.gram(
        fgo.probes.example_gradients(example_loss), every=50, examples=8
    ),
    "trajectory": lambda: fgo.probes.trajectory(every=50, snapshots=4, width=16),
    "commutator": lambda: fgo.probes.commutator(
        batch_loss, every=50, pairs=1, snapshots=4, width=16
    ),
}
PROBES["joined"] = lambda: fgo.probes.joined(*(PROBES[n]() for n in ("gram", "trajectory")))


@pytest.mark.parametrize("kind", PROBES)
def test_measurements_lie_in_a_branch_of_the_compiled_step_only(kind, monkeypatch):
    # The default probe runs none of the user's code: its own is marked.
    monkeypatch.setattr(sketch, "_signed", jax.named_scope(MARK)(sketch._signed))
    tx = fgo.phased([fgo.acquisition(1e-3)], [], PROBES[kind]())
    params, batch = mlp_params(), mlp_batch(0, size=64)

    def step(params, state, batch):
        value, grads = jax.value_and_grad(mlp_loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, batch=batch)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step).lower(params, tx.init(params), batch).compile()
    bodies, entry = computations(compiled.as_text())
    marked = {name for name, lines in bodies.items() if any(MARK in line for line in lines)}
    always = reached(bodies, entry)
    assert marked  # the measurement is there,
    assert not marked & always  # and no step without a measurement runs them
    # The same search does find what every step runs.
    assert any("dot" in line for name in always for line in bodies[name])


@pytest.mark.parametrize("wrap", ["masked", "partition"])
def test_a_probe_under_masked_asks_for_the_whole_tree(wrap):
    tx = fgo.phased([fgo.acquisition(1e-3)], [], PROBES["lanczos"]())
    params, batch = mlp_params(), mlp_batch(0, size=64)
    if wrap == "masked":
        tx = optax.masked(tx, {"hidden": True, "out": False})
    else:
        tx = optax.partition({"fgo": tx, "rest": optax.sgd(1e-3)}, {"hidden": "fgo", "out": "rest"})
    state = tx.init(params)
    with pytest.raises(TypeError, match="probe_params=params"):
        tx.update(params, state, params, batch=batch)
    _, state = tx.update(params, state, params, batch=batch, probe_params=params)
    assert int(fgo.telemetry(state)["total_step"]) == 1


@pytest.mark.slow
def test_krylov_bases_stay_sharded_like_the_parameters():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def put(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    alone, batch = mlp_params(width=64), mlp_batch(0, 64)
    params = {
        "hidden": {
            "kernel": put(alone["hidden"]["kernel"], P(None, "model")),
            "bias": put(alone["hidden"]["bias"], P("model")),
        },
        "out": {"kernel": put(alone["out"]["kernel"], P("model", None))},
    }
    operator = fgo.curvature.ggn(lambda p, b: mlp(p, b["x"]))
    for probe in (
        fgo.probes.lanczos(operator, num_steps=5, examples=32, block_size=2),
        fgo.probes.hutchinson(operator, examples=32, deflate=2),
    ):

        def read(params, batch, probe=probe):
            inputs = ProbeInputs(None, None, params, batch, jax.random.key(0), jnp.int32(200))
            return probe.read(probe.measure(inputs, probe.init(params)))

        compiled = jax.jit(read).lower(params, put(batch, P("data"))).compile()
        moved = re.findall(r"= (\S+) (?:all-gather|all-to-all)", compiled.as_text())
        assert not moved, moved  # only sums travel: no basis and no product is gathered
        # The same key gives the same probes; sums come in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4),
            *(
                jax.tree.map(lambda e: e.value, read, is_leaf=lambda x: hasattr(x, "error"))
                for read in (compiled(params, put(batch, P("data"))), jax.jit(read)(alone, batch))
            ),
        )
