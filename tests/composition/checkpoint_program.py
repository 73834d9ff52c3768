"""What test_checkpoints.py runs: train and save; restore and train on, in a process of its own.

    python -m tests.composition.checkpoint_program FOLDER FROM:TO:DEVICES ...

The numbers of interest are printed as JSON. Examples and the columns of the hidden layer are split
over a mesh of so many devices.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from tests.problems import mlp_batch, mlp_loss, mlp_params

STEPS, RATE = 25, 0.05
# Checkpoints by the step at which they are saved, one for each state that a run can be in.
POINTS = {"acquisition": 50, "a hand-over": 100, "re-ask": 125, "execution": 175}


@functools.cache
def mesh_of(devices):
    kind = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ("all",), kind, devices=jax.devices()[:devices])


def make(rate):
    """Adam, the default transform by a graft, both smoothings, phases that end by measurements."""
    t = fgo.triggers
    return fgo.target_acquisition(
        rate, 10, weight_decay=1e-3, average_weights=0.2, handover_steps=20,
        transform={"acquisition": optax.scale_by_adam()},
        probe=fgo.probes.gradient_stream(pairs=4, width=32, every=3),
        triggers={
            "reask": t.below("agreement", 0.25, patience=3),
            "execution": t.plateau("validation", patience=2),
        },
    )  # fmt: skip


def placed(params, mesh):
    split = {
        "hidden": {"kernel": P(None, "all"), "bias": P("all")},
        "out": {"kernel": P("all", None)},
    }
    return jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, split)


@functools.cache
def fresh(mesh):
    """Parameters and a state on the mesh."""
    params = placed(mlp_params(), mesh)
    return params, make(RATE).init(params)


@functools.cache
def template(mesh):
    """What Orbax restores onto: shapes and places, without a state."""
    params, tx = placed(mlp_params(), mesh), make(RATE)
    shapes = jax.eval_shape(tx.init, params)
    homes = fgo.state_shardings(tx, params)
    return params, jax.tree.map(lambda x, home: x.update(sharding=home), shapes, homes)


@functools.partial(jax.jit, donate_argnums=1, static_argnums=(3, 4))
def walk(rate, carry, first, mesh, steps):
    """So many steps, and the phase after each."""
    tx = make(rate)

    def step(carry, number):
        params, state = carry
        batch = jax.lax.with_sharding_constraint(mlp_batch(number), NamedSharding(mesh, P("all")))
        value, grads = jax.value_and_grad(mlp_loss)(params, batch)
        due = number % 10 == 0
        updates, state = tx.update(
            grads, state, params, value=value, validation_value=jnp.where(due, value, jnp.nan)
        )
        return (optax.apply_updates(params, updates), state), state.clock.phase

    return jax.lax.scan(step, carry, first + jnp.arange(steps))


def digest(carry):
    leaves = jax.tree.leaves(jax.device_get(carry))
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def told(carry):
    """What two runs are compared by."""
    params, state = jax.device_get(carry)
    numbers = {name: float(x) for name, x in fgo.telemetry(state).items()}
    weights = params["out"]["kernel"].tolist()
    return {"digest": digest(carry), "telemetry": numbers, "weights": weights}


def train(folder):
    """The run on one device with its checkpoints, and what it tells 50 and 100 steps after each."""
    import orbax.checkpoint as ocp

    mesh = mesh_of(1)
    carry, report = fresh(mesh), {"start": {}, "phases": [], "after 50": {}, "after 100": {}}
    with ocp.StandardCheckpointer() as checkpointer:
        for number in range(12):
            for name, point in POINTS.items():
                if point == number * STEPS:
                    checkpointer.save(folder / "start" / name, carry)
                    (folder / name).write_bytes(flax.serialization.to_bytes(carry))
                    report["start"][name] = told(carry)
                for later in (50, 100):
                    if point + later == number * STEPS:
                        report[f"after {later}"][name] = told(carry)
            checkpointer.wait_until_finished()  # donation would overwrite what is being saved
            carry, phases = walk(RATE, carry, jnp.int32(number * STEPS), mesh, STEPS)
            report["phases"] += np.asarray(phases).tolist()
    return report


def resume(folder, source, target, devices, rate=RATE):
    """Restores each checkpoint onto so many devices, and makes 50 more steps."""
    import orbax.checkpoint as ocp

    report, first, mesh = {}, source == "start", mesh_of(int(devices))
    with ocp.StandardCheckpointer() as checkpointer:
        for name, point in POINTS.items():
            carry = checkpointer.restore(folder / source / name, template(mesh))
            if first:
                restored = digest(carry)
                for loaded in by_flax(folder / name, mesh):
                    assert digest(loaded) == restored
            # At once: the partitioner moves the state, and a second call would compile again.
            start = point + (0 if first else 2 * STEPS)
            carry, _ = walk(float(rate), carry, jnp.int32(start), mesh, 2 * STEPS)
            report[name] = told(carry)
            if target == "eight":  # the only one that others start from
                checkpointer.save(folder / target / name, carry)
        checkpointer.wait_until_finished()
    return report


def by_flax(path, mesh):
    """The same state by Flax's ways."""
    loaded = flax.serialization.from_bytes(fresh(mesh), path.read_bytes())
    yield loaded
    yield flax.serialization.from_state_dict(fresh(mesh), flax.serialization.to_state_dict(loaded))


if __name__ == "__main__":
    folder, *pairs = sys.argv[1:]
    print(json.dumps({pair: resume(Path(folder), *pair.split(":")) for pair in pairs}))
