"""How far the curvature probes are from the truth, how honest their errors are, what they cost.

The truth is dense and in float64. With outputs z, probabilities p = softmax(z) and the
Jacobian J of n examples' C outputs, the rows

    r_ic = sqrt(p_ic / n) (J_ic - sum_k p_ik J_ik)        [n C, d]

have R^T R = J^T H J / n, since diag(p) - p p^T = sum_c p_c (e_c - p) (e_c - p)^T. The
spectrum of F is that of the small R R^T, whatever the number of parameters.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import fgo_jax as fgo
from benchmarks.measurements import probe_speed
from benchmarks.measurements.probe_speed import LAYERS, Model, mlp
from benchmarks.runs.store import environment
from benchmarks.tasks import get_task
from benchmarks.terminal import figures
from fgo_jax.linalg import krylov_space, random_block
from fgo_jax.probes import Probe, ProbeInputs

PEERS = ("matfree", "traceax", "lineax")
# Sign vectors of Hutchinson, steps and starts of Lanczos: the defaults, and more of each.
SETTINGS = ((4, 12, 2), (64, 24, 8))
TOP = 5  # leading eigenvalues to compare with Ritz values
WITHIN = 1.96  # standard errors, of which 95 % of the estimates should be
_SIGNAL = {
    "probe": "{probe}", "signal": "{signal}", "truth": "{truth:.4g}",
    "bias": "{bias:+.1%} ± {bias_error:.1%}", "rms": "{rms:.1%}",
    "reported error": "{reported:.1%}", "coverage": "{coverage:.0%}",
}  # fmt: skip
_SPEED = {
    "size": "{size}", "task, operator": "{task}, {operator}", "peer": "{peer}",
    "ours": lambda row: f"{1e3 * row['seconds']:.1f} ms", "time": "{time_ratio:.2f}",
    "bound": "{time_ratio_upper:.2f}", "memory": "{memory_ratio:.2f}",
    "": lambda row: "met" if row["met"] else "[red]missed[/]",
}  # fmt: skip


class Truth(NamedTuple):
    eigenvalues: np.ndarray  # descending; all that are not zero
    halves: tuple[float, float, float]  # tr F_1, tr F_2, tr F_1 F_2


def digits_vit() -> Model:
    """On two batches: the dense truth takes a row for each class of each example."""
    task, key = get_task("digits_vit"), jax.random.key(0)
    draws = [task.batch(task.data(0), key, jnp.int32(step)) for step in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *draws)
    return Model(task.init(key), batch, task.predict)


MODELS: dict[str, Callable[[], Model]] = {"mlp": mlp, "digits_vit": digits_vit}


def measure(
    *, draws: int, rounds: int, sizes: Sequence[str],
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that `sketch.json` holds.

    The accuracy is over `draws` of each probe's key; the models `sizes` are timed in `rounds`.
    """
    signals, ritz, speed = [], [], []
    for name, make in MODELS.items():
        announce(f"accuracy on {name}")
        model = make()
        exact = truth(model)
        signals += [{"model": name, **row} for row in signals_of(model, exact, draws)]
        ritz += [{"model": name, **row} for row in ritz_of(model, exact, draws)]
    for name in sizes:
        announce(f"speed at {name} parameters")
        speed += [{"size": name, **row} for row in probe_speed.measure(LAYERS[name], rounds)]
    return {
        "environment": {**environment(), **{name: metadata.version(name) for name in PEERS}},
        "limits": {"time_ratio_upper": probe_speed.LIMIT, "memory_ratio": 1.0}, "rounds": rounds,
        "signals": signals, "ritz": ritz, "speed": speed,
    }  # fmt: skip


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

    def wide(leaf: jax.Array) -> np.ndarray:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return np.asarray(leaf, np.float64 if is_float else leaf.dtype)

    with jax.enable_x64(True):
        params, batch = jax.tree.map(wide, (model.params, model.batch))

        def outputs(params: Any, example: Any) -> Any:
            return model.predict(params, jax.tree.map(lambda leaf: leaf[None], example))[0]

        def one(example: Any) -> Any:
            return jax.jacrev(outputs)(params, example), jax.nn.softmax(outputs(params, example))

        found = jax.jit(lambda batch: jax.lax.map(one, batch))(batch)
        jacobian, p = jax.tree.map(np.asarray, found)
    rows = np.concatenate([leaf.reshape(*p.shape, -1) for leaf in jax.tree.leaves(jacobian)], 2)
    rows = rows - np.einsum("ik,ikd->id", p, rows)[:, None]
    return (np.sqrt(p / len(p))[..., None] * rows).reshape(p.size, -1)


def signals_of(model: Model, exact: Truth, draws: int) -> list[dict[str, Any]]:
    """A row for each signal of each probe: bias, spread, and how honest its error is."""
    values, (first, second, cross) = exact
    spectrum = {
        "trace": float(values.sum()), "top_eigenvalue": float(values[0]),
        "intrinsic_dimension": float(values.sum()) ** 2 / float((values**2).sum()),
    }  # fmt: skip
    moments = {
        "trace": (first + second) / 2, "trace_square": cross,
        "intrinsic_dimension": first * second / cross,
    }  # fmt: skip
    examples = int(jax.tree.leaves(model.batch)[0].shape[0])
    size = {"parameters": int(optax.tree.size(model.params)), "examples": examples}
    operator = fgo.curvature.ggn(model.predict, "softmax_cross_entropy")

    def rows(label: str, probe: Probe, expected: dict[str, float]) -> list[dict[str, Any]]:
        def read(key: jax.Array) -> Any:
            inputs = ProbeInputs(None, None, model.params, model.batch, key, jnp.int32(200))
            return probe.read(probe.measure(inputs, probe.init(model.params)))

        estimates = _of_draws(read, draws, seed=1)
        named = {**size, "draws": draws, "probe": label}
        return [
            {**named, "signal": name, "truth": truth, **_figures(estimates[name], truth)}
            for name, truth in expected.items()
        ]

    found = []
    for samples, steps, starts in SETTINGS:
        probe = fgo.probes.hutchinson(operator, num_samples=samples, examples=examples)
        found += rows(f"hutchinson({samples} vectors)", probe, moments)
        probe = fgo.probes.lanczos(operator, steps, num_starts=starts, examples=examples)
        found += rows(f"lanczos({steps} x {starts})", probe, spectrum)
    return found


def _of_draws(read: Callable[[jax.Array], Any], draws: int, seed: int) -> Any:
    """What `read` gives for so many keys, in float64."""
    keys = jax.random.split(jax.random.key(seed), draws)
    found = jax.jit(lambda keys: jax.lax.map(read, keys))(keys)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)


def _figures(estimate: Any, truth: float) -> dict[str, Any]:
    value, error = estimate
    known = ~np.isnan(value)  # a ratio is NaN where its terms were not both positive
    off, error = value[known] - truth, error[known]
    return {
        "bias": float(np.mean(off) / truth),
        "bias_error": float(np.std(off) / len(off) ** 0.5 / truth),
        "rms": float(np.sqrt(np.mean(off**2)) / truth), "reported": float(np.median(error) / truth),
        "coverage": float(np.mean(np.abs(off) <= WITHIN * error)), "held": int(np.sum(~known)),
    }  # fmt: skip


def ritz_of(model: Model, exact: Truth, draws: int) -> list[dict[str, Any]]:
    """Relative errors of the leading Ritz values of one start, the worst of all draws."""
    values = exact.eigenvalues
    sums = {"trace": float(values.sum()), "trace_square": float((values**2).sum())}
    matvec = fgo.curvature.ggn(model.predict, "softmax_cross_entropy")(model.params, model.batch)

    def leading(key: jax.Array, steps: int) -> jax.Array:
        space = krylov_space(matvec, random_block(key, model.params, 1), steps)
        return jnp.linalg.eigvalsh(space.matrix)[::-1][:TOP]

    rows = []
    for steps in (12, 24):
        found = _of_draws(functools.partial(leading, steps=steps), draws, seed=2)
        worst = np.max(np.abs(found / values[:TOP] - 1.0), axis=0)
        rows.append({"steps": steps, **sums, "eigenvalues": values[:TOP], "worst": worst})
    return rows


def print_tables(results: Mapping[str, Any], console: Console) -> None:
    for name in dict.fromkeys(row["model"] for row in results["signals"]):
        rows = [row for row in results["signals"] if row["model"] == name]
        title = (
            f"{name}: {rows[0]['parameters']} parameters, {rows[0]['examples']} examples, "
            f"{rows[0]['draws']} draws; relative to the dense float64 truth"
        )
        console.print(figures(title, rows, _SIGNAL, left=2))
        for row in results["ritz"]:
            if row["model"] == name:
                worst = ", ".join(f"{error:.1e}" for error in row["worst"])
                words = f"Leading Ritz values after {row['steps']} steps, worst relative error:"
                console.print(f"{words} {worst}", style="dim")
    title = "Time and memory over the peer's: medians of paired rounds, upper 95 % bounds"
    console.print(figures(title, results["speed"], _SPEED, left=3))
