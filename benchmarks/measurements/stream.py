"""What the default probe's rows hold besides noise: pairs from training against fixed parameters.

The two gradients of a pair are taken at successive parameters, so their difference also
holds the Hessian times the step between them. Here the same number of rows is taken both
ways around the same point of a run, without a sketch, at several learning rates.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from benchmarks.methods import schedules
from benchmarks.runs.store import environment
from benchmarks.tasks import Task
from benchmarks.terminal import figures
from fgo_jax.linalg import centred_sums, jackknife_log_ratio, uncentred_sums

RATES = (1e-3, 3e-3, 1e-2)
STEPS = (200, 1000, 2500)  # the middle of the pairs that are read
ROWS = 128


def measure(
    task: Task, *, rates: Sequence[float] = RATES, steps: Sequence[int] = STEPS, rows: int = ROWS,
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Dimension and trace of the gradient noise, by pairs and at fixed parameters.

    The task is trained with Adam at constant rates. `rows` of either kind are taken at `steps`.
    """
    cases = []
    for rate in rates:
        announce(f"rate {rate:g}")
        for step in steps:
            case = _case(task, rate, step, rows)
            cases.append({"learning_rate": rate, "step": step, **case})
    return {"task": task.name, "rows": rows, "cases": cases, "environment": environment()}


def _case(task: Task, rate: float, middle: int, rows: int) -> dict[str, Any]:
    tx = optax.adam(schedules.constant(task, {"learning_rate": rate}))
    init_key, key = jax.random.split(jax.random.key(0))
    data = task.data(0)

    def gradient(params, number):
        return jax.grad(task.loss)(params, task.batch(data, key, number))

    @functools.partial(jax.jit, static_argnums=(1, 3))
    def run(carry, count, first=0, keep=True):
        def step(carry, number):
            params, state = carry
            grads = gradient(params, number)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), grads if keep else None

        return jax.lax.scan(step, carry, first + jnp.arange(count))

    params = task.init(init_key)
    carry, _ = run((params, tx.init(params)), middle - rows, 0, False)
    carry, before = run(carry, rows, middle - rows)
    numbers = task.num_steps + jnp.arange(rows)
    fixed = jax.jit(lambda params: jax.lax.map(lambda n: gradient(params, n), numbers))(carry[0])
    _, after = run(carry, rows, middle)
    stream = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, after)
    pairs = jax.tree.map(lambda leaf: (leaf[1::2] - leaf[::2]) * 0.5**0.5, stream)
    return {"pairs": _summary(pairs, is_centred=False), "fixed": _summary(fixed, is_centred=True)}


def _summary(rows: Any, is_centred: bool) -> dict[str, float]:
    products = [
        jnp.tensordot(leaf, leaf, axes=(tuple(range(1, leaf.ndim)),) * 2, precision="highest")
        for leaf in jax.tree.leaves(rows)
    ]
    gram = functools.reduce(jnp.add, products)
    count, sums = gram.shape[0], centred_sums if is_centred else uncentred_sums
    numerator, denominator = sums(gram)
    squares = jnp.diagonal(gram)
    of_mean = jnp.mean(gram, axis=0) if is_centred else 0.0
    return {
        "intrinsic_dimension": float(numerator / denominator),
        "relative_error": float(jackknife_log_ratio(gram, sums)),
        "trace": float(jnp.sum(squares - of_mean) / (count - is_centred)),
        "trace_error": float(jnp.std(squares, ddof=1) / count**0.5),
    }


def _ratio(case: Mapping[str, Any]) -> str:
    pairs, fixed = case["pairs"], case["fixed"]
    ratio = pairs["intrinsic_dimension"] / fixed["intrinsic_dimension"]
    error = (pairs["relative_error"] ** 2 + fixed["relative_error"] ** 2) ** 0.5
    return f"{ratio:.2f} ± {error * ratio:.2f}"


_COLUMNS = {
    "rate": "{learning_rate:g}", "step": "{step}",
    "dimension, fixed": "{fixed[intrinsic_dimension]:.1f}",
    "pairs": "{pairs[intrinsic_dimension]:.1f}", "ratio": _ratio,
    "trace ratio": lambda case: f"{case['pairs']['trace'] / case['fixed']['trace']:.2f}",
}  # fmt: skip


def print_table(results: Mapping[str, Any], console: Console) -> None:
    title = f"{results['task']}, {results['rows']} rows: pairs of a run over fixed parameters"
    console.print(figures(title, results["cases"], _COLUMNS, left=0))
