"""What the default probe's rows hold besides noise: pairs from training against fixed parameters.

The two gradients of a pair are taken at successive parameters, so their difference also
holds the Hessian times the step between them. Here the same number of rows is taken both
ways around the same point of a run, without a sketch, at several learning rates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from benchmarks.methods import schedules
from benchmarks.runs.store import environment
from benchmarks.tasks import Task
from fgo_jax.linalg import sums

RATES = (1e-3, 3e-3, 1e-2)
STEPS = (200, 1000, 2500)  # the middle of the pairs that are read
ROWS = 128


def measure(
    task: Task,
    *,
    rates: Sequence[float] = RATES,
    steps: Sequence[int] = STEPS,
    rows: int = ROWS,
    seed: int = 0,
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Dimension and trace of the gradient noise, by pairs and at fixed parameters.

    Args:
      task: what is trained, with Adam at a constant rate.
      rates: learning rates.
      steps: where in a run; each at least `rows`.
      rows: of either kind.
      seed: of data, initial weights and batches.
      announce: called with what begins.
    """
    cases = []
    for rate in rates:
        announce(f"rate {rate:g}")
        for step in steps:
            case = _case(task, rate, step, rows, seed)
            cases.append({"learning_rate": rate, "step": step, **case})
    return {"task": task.name, "rows": rows, "cases": cases, "environment": environment()}


def _case(task: Task, rate: float, middle: int, rows: int, seed: int) -> dict[str, Any]:
    tx = optax.adam(schedules.constant(rate, task.warmup_steps))
    init_key, key = jax.random.split(jax.random.key(seed))
    data = task.data(seed)

    def gradient(params, number):
        return jax.grad(task.loss)(params, task.batch(data, key, number))

    def step(carry, number):
        params, state = carry
        grads = gradient(params, number)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), grads

    @functools.partial(jax.jit, static_argnums=1)
    def run(carry, count, first):
        return jax.lax.scan(step, carry, first + jnp.arange(count))

    @functools.partial(jax.jit, static_argnums=1)
    def advance(carry, count):
        return jax.lax.scan(lambda c, n: (step(c, n)[0], None), carry, jnp.arange(count))[0]

    params = task.init(init_key)
    carry = advance((params, tx.init(params)), middle - rows)
    carry, before = run(carry, rows, middle - rows)
    fixed = jax.jit(
        lambda params: jax.lax.map(lambda n: gradient(params, n), task.num_steps + jnp.arange(rows))
    )(carry[0])
    _, after = run(carry, rows, middle)
    stream = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), before, after)
    pairs = jax.tree.map(lambda leaf: (leaf[1::2] - leaf[::2]) * 0.5**0.5, stream)
    return {
        "pairs": _summary(pairs, sums.uncentred_sums),
        "fixed": _summary(fixed, sums.centred_sums),
    }


def _summary(rows: Any, sums: Callable) -> dict[str, float]:
    gram = sum(
        jnp.tensordot(leaf, leaf, axes=(tuple(range(1, leaf.ndim)),) * 2, precision="highest")
        for leaf in jax.tree.leaves(rows)
    )
    gram = jnp.asarray(gram)
    numerator, denominator = sums(gram)
    centred = sums is sums.centred_sums
    freedom = gram.shape[0] - 1 if centred else gram.shape[0]
    trace = jnp.trace(sums.centre(gram) if centred else gram) / freedom
    return {
        "intrinsic_dimension": float(numerator / denominator),
        "relative_error": float(sums.jackknife_log_ratio(gram, sums)),
        "trace": float(trace),
        "trace_error": float(jnp.std(jnp.diagonal(gram), ddof=1) / gram.shape[0] ** 0.5),
    }


def print_table(results: Mapping[str, Any], console: Console) -> None:
    table = Table(
        title=f"{results['task']}, {results['rows']} rows: pairs of a run over fixed parameters",
        title_justify="left",
    )
    for heading in ("rate", "step", "dimension, fixed", "pairs", "ratio", "trace ratio"):
        table.add_column(heading, justify="right")
    for case in results["cases"]:
        pairs, fixed = case["pairs"], case["fixed"]
        dimension = [s["intrinsic_dimension"] for s in (fixed, pairs)]
        error = (pairs["relative_error"] ** 2 + fixed["relative_error"] ** 2) ** 0.5
        table.add_row(
            f"{case['learning_rate']:g}",
            str(case["step"]),
            *(f"{value:.1f}" for value in dimension),
            f"{dimension[1] / dimension[0]:.2f} ± {error * dimension[1] / dimension[0]:.2f}",
            f"{pairs['trace'] / fixed['trace']:.2f}",
        )
    console.print(table)
