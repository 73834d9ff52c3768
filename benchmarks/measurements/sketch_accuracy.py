"""How far the probes are from the truth, and how honest their standard errors are.

The truth is dense and in float64. With outputs z, probabilities p = softmax(z) and the
Jacobian J of n examples' C outputs, the rows

    r_ic = sqrt(p_ic / n) (J_ic - sum_k p_ik J_ik)        [n C, d]

have R^T R = J^T H J / n, since diag(p) - p p^T = sum_c p_c (e_c - p) (e_c - p)^T. The
spectrum of F is that of the small R R^T, whatever the number of parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fgo_jax as fgo
from benchmarks.tasks import get_task
from fgo_jax.linalg.krylov import krylov_space, random_block
from fgo_jax.probes import Probe, ProbeInputs

# Sign vectors of Hutchinson, steps and starts of Lanczos: the defaults, and more of each.
SETTINGS = ((4, 12, 2), (64, 24, 8))
TOP = 5  # leading eigenvalues to compare with Ritz values
WITHIN = 1.96  # standard errors, of which 95 % of the estimates should be


class Model(NamedTuple):
    """A classifier at its parameters, with the examples whose Fisher is measured."""

    name: str
    params: Any
    batch: Any
    predict: Callable[[Any, Any], Any]


class Truth(NamedTuple):
    eigenvalues: np.ndarray  # descending; all that are not zero
    halves: tuple[float, float, float]  # tr F_1, tr F_2, tr F_1 F_2


def mlp(sizes: tuple[int, ...] = (16, 32, 10), examples: int = 256) -> Model:
    keys = jax.random.split(jax.random.key(0), len(sizes))
    shapes = itertools.pairwise(sizes)
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys[1:], shapes, strict=True)
    ]
    # Inputs of unequal variance, as data are: a spectrum that decays.
    scales = jnp.exp(-jnp.arange(sizes[0]) / 4.0)
    batch = {"x": 2.0 * scales * jax.random.normal(keys[0], (examples, sizes[0]))}
    return Model("mlp", params, batch, mlp_predict)


def mlp_predict(params: Any, batch: Any) -> jax.Array:
    x = batch["x"]
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def digits_vit(examples: int = 64) -> Model:
    task = get_task("digits_vit")
    data = task.data(0)["train"]
    batch = task.batch(task.data(0), jax.random.key(0), jnp.int32(0))
    repeats = -(-examples // batch["label"].shape[0])
    draws = [
        task.batch({"train": data}, jax.random.key(0), jnp.int32(step)) for step in range(repeats)
    ]
    batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:examples], *draws)
    return Model(task.name, task.init(jax.random.key(0)), batch, task.predict)


def truth(model: Model) -> Truth:
    rows = _rows(model)
    half = rows.shape[0] // 2
    # The mean over a half has twice the weight on each example.
    first, second = 2.0 * rows[:half] @ rows[:half].T, 2.0 * rows[half:] @ rows[half:].T
    cross = 2.0 * rows[:half] @ rows[half:].T
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T)[::-1]
    halves = (float(np.trace(first)), float(np.trace(second)), float(np.sum(cross**2)))
    return Truth(eigenvalues, halves)


def _rows(model: Model) -> np.ndarray:
    """R, [examples * classes, parameters], float64."""
    with jax.enable_x64(True):
        params, batch = (
            jax.tree.map(lambda x: np.asarray(x, _wide(x)), tree)
            for tree in (model.params, model.batch)
        )

        def outputs(params: Any, example: Any) -> Any:
            return model.predict(params, jax.tree.map(lambda leaf: leaf[None], example))[0]

        def one(example: Any) -> Any:
            return jax.jacrev(outputs)(params, example), jax.nn.softmax(outputs(params, example))

        jacobian, p = jax.jit(lambda batch: jax.lax.map(one, batch))(batch)
        p = np.asarray(p)
    examples, classes = p.shape
    leaves = [np.asarray(leaf).reshape(examples, classes, -1) for leaf in jax.tree.leaves(jacobian)]
    rows = np.concatenate(leaves, axis=2)
    rows = rows - np.einsum("ik,ikd->id", p, rows)[:, None]
    return (np.sqrt(p / examples)[..., None] * rows).reshape(examples * classes, -1)


def _wide(leaf: jax.Array) -> Any:
    return np.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def measure(model: Model, draws: int) -> dict[str, Any]:
    """All probes on one model: signals with their errors' coverage, and top eigenvalues."""
    exact = truth(model)
    values = exact.eigenvalues
    trace, square = float(values.sum()), float((values**2).sum())
    first, second, cross = exact.halves
    examples = jax.tree.leaves(model.batch)[0].shape[0]
    operator = fgo.curvature.ggn(model.predict, "softmax_cross_entropy")
    spectrum = {
        "trace": trace,
        "top_eigenvalue": float(values[0]),
        "intrinsic_dimension": trace**2 / square,
    }
    moments = {
        "trace": (first + second) / 2,
        "trace_square": cross,
        "intrinsic_dimension": first * second / cross,
    }
    rows = []
    for samples, steps, starts in SETTINGS:
        probe = fgo.probes.hutchinson(operator, num_samples=samples, examples=examples)
        rows += _signals(model, f"hutchinson({samples} vectors)", probe, moments, draws)
        probe = fgo.probes.lanczos(operator, steps, num_starts=starts, examples=examples)
        rows += _signals(model, f"lanczos({steps} x {starts})", probe, spectrum, draws)
    return {
        "parameters": int(optax.tree.size(model.params)),
        "examples": int(examples),
        "draws": draws,
        "truth": {"trace": trace, "trace_square": square, "eigenvalues": values[:TOP]},
        "signals": rows,
        "top_eigenvalues": [_top(model, operator, values, steps, draws) for steps in (12, 24)],
    }


def _signals(
    model: Model, label: str, probe: Probe, expected: dict[str, float], draws: int
) -> list[dict[str, Any]]:
    def read(key: jax.Array) -> Any:
        inputs = ProbeInputs(None, None, model.params, model.batch, key, jnp.int32(200))
        return probe.read(probe.measure(inputs, probe.init(model.params)))

    keys = jax.random.split(jax.random.key(1), draws)
    estimates = jax.tree.map(np.asarray, jax.jit(lambda keys: jax.lax.map(read, keys))(keys))
    rows = []
    for name, wanted in expected.items():
        value = estimates[name].value.astype(np.float64)
        error = estimates[name].error.astype(np.float64)
        held = np.isnan(value)  # a ratio whose terms were not both positive
        value, error = value[~held], error[~held]
        off = value - wanted
        rows.append(
            {
                "probe": label,
                "signal": name,
                "truth": wanted,
                "bias": float(np.mean(off) / wanted),
                "bias_error": float(np.std(off) / len(off) ** 0.5 / wanted),
                "rms": float(np.sqrt(np.mean(off**2)) / wanted),
                "reported": float(np.median(error) / wanted),
                "coverage": float(np.mean(np.abs(off) <= WITHIN * error)),
                "held": int(held.sum()),
            }
        )
    return rows


def _top(model: Model, operator: Any, values: np.ndarray, steps: int, draws: int) -> dict[str, Any]:
    """Relative errors of the leading Ritz values of one start, the worst of all draws."""
    matvec = operator(model.params, model.batch)

    def run(key: jax.Array) -> jax.Array:
        space = krylov_space(matvec, random_block(key, model.params, 1), steps)
        return jnp.linalg.eigvalsh(space.matrix)[::-1][:TOP]

    keys = jax.random.split(jax.random.key(2), draws)
    ritz = np.asarray(jax.jit(lambda keys: jax.lax.map(run, keys))(keys), np.float64)
    return {"steps": steps, "worst": np.max(np.abs(ritz / values[:TOP] - 1.0), axis=0)}
