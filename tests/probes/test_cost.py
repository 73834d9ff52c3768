"""Between its measurements a probe runs nothing, and masked parameters are refused."""

import re

import jax
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.probes import sketch
from tests.problems import mlp, mlp_batch, mlp_loss, mlp_params

MARK = "the_probe_runs"


def predict(params, batch):
    with jax.named_scope(MARK):
        return mlp(params, batch["x"])


def example_loss(params, example):
    with jax.named_scope(MARK):
        return -jax.nn.log_softmax(mlp(params, example["x"][None])[0])[example["y"]]


PROBES = {
    "gradient_stream": lambda: fgo.probes.gradient_stream(),
    "lanczos": lambda: fgo.probes.lanczos(fgo.curvature.ggn(predict), num_steps=3, every=50),
    "hutchinson": lambda: fgo.probes.hutchinson(fgo.curvature.ggn(predict), every=50, deflate=1),
    "gram": lambda: fgo.probes.gram(
        fgo.probes.example_gradients(example_loss), every=50, examples=8
    ),
}


def computations(text):
    """Name to body of each computation of an HLO module; the entry's name."""
    bodies, entry, name = {}, None, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head.group(2)
            bodies[name] = []
            entry = name if head.group(1) else entry
        elif name is not None:
            bodies[name].append(line)
    return bodies, entry


def reached(bodies, start):
    """Computations that run whenever `start` does: not the branches of a conditional."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in bodies[name]:
            if " conditional(" not in line:
                todo += [word for word in re.findall(r"%([\w.\-]+)", line) if word in bodies]
    return seen


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
