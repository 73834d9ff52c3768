"""Time and memory of the probes beside matfree's and traceax's estimators.

Everyone gets the same operator at the same parameters and as many products with it; what
differs is what surrounds the products. The peers work on flat vectors. For the cheap
`diagonal` operator they get it as a flat vector too, which is their best form; a model's
operator takes a pytree, so there they ravel and unravel, as their users have to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import fgo_jax as fgo
from benchmarks.measurements.sketch_accuracy import mlp_predict
from benchmarks.runs import clock
from fgo_jax.linalg.krylov import krylov_space, random_block
from fgo_jax.probes import ProbeInputs

LIMIT = 1.05  # of a ratio's upper bound
LAYERS = {"100k": (64, 256, 256, 64, 10), "10M": (512, 2048, 2048, 2048, 10)}
EXAMPLES = 32
STEPS = 12  # of Lanczos, the probe's default
VECTORS = 4  # of Hutchinson, the probe's default; two products each


class Problem(NamedTuple):
    """An operator in both forms, with the arguments that are traced."""

    name: str
    params: Any
    batch: Any
    operator: Callable[[Any, Any], Callable[[Any], Any]]
    flat_operator: Callable[[Any, Any], Callable[[jax.Array], jax.Array]]


def problem(kind: str, layers: tuple[int, ...]) -> Problem:
    keys = jax.random.split(jax.random.key(0), len(layers))
    shapes = itertools.pairwise(layers)
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.full(shape[1], 0.1)}
        for key, shape in zip(keys[1:], shapes, strict=True)
    ]
    batch = {"x": jax.random.normal(keys[0], (EXAMPLES, layers[0]))}
    unravel = ravel_pytree(params)[1]
    if kind == "ggn":
        operator = fgo.curvature.ggn(mlp_predict, "softmax_cross_entropy")

        def flat_operator(params: Any, batch: Any) -> Callable[[jax.Array], jax.Array]:
            matvec = operator(params, batch)
            return lambda vector: ravel_pytree(matvec(unravel(vector)))[0]

    else:
        # Its entries are the parameters' squares, and it depends on the examples read.
        def diagonal(params: Any, batch: Any) -> Callable[[Any], Any]:
            scale = jnp.mean(jnp.square(batch["x"]))
            return lambda vector: jax.tree.map(lambda p, v: scale * p * p * v, params, vector)

        operator = diagonal

        def flat_operator(params: Any, batch: Any) -> Callable[[jax.Array], jax.Array]:
            scale = jnp.mean(jnp.square(batch["x"]))
            return lambda vector: scale * params * params * vector

    return Problem(kind, params, batch, operator, flat_operator)


def measure(
    layers: tuple[int, ...], rounds: int, progress: Callable[[int], None] = lambda calls: None
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for kind in ("diagonal", "ggn"):
        given = problem(kind, layers)
        results["parameters"] = int(optax.tree.size(given.params))
        for name, contest in (("lanczos", _lanczos), ("trace", _trace)):
            results[f"{name}, {kind}"] = _compare(given, contest(given), rounds, progress)
    return results


def _lanczos(given: Problem) -> dict[str, Callable[..., Any]]:
    from matfree import decomp

    size = int(optax.tree.size(given.params))
    tridiagonalise = decomp.tridiag_sym(STEPS, reortho="full", custom_vjp=False)

    def ours(params: Any, batch: Any, key: jax.Array) -> Any:
        space = krylov_space(given.operator(params, batch), random_block(key, params, 1), STEPS)
        return space.matrix, space.coupling

    def matfree(params: Any, batch: Any, key: jax.Array) -> Any:
        start = jax.random.normal(key, (size,))
        return tridiagonalise(given.flat_operator(params, batch), start).J_small

    return {"fgo": ours, "matfree": matfree}


def _trace(given: Problem) -> dict[str, Callable[..., Any]]:
    import lineax
    import traceax
    from matfree import stochtrace

    products = 2 * VECTORS
    flat = jax.ShapeDtypeStruct((int(optax.tree.size(given.params)),), jnp.float32)
    probe = fgo.probes.hutchinson(given.operator, VECTORS, examples=EXAMPLES)
    before = probe.init(given.params)

    def ours(params: Any, batch: Any, key: jax.Array) -> Any:
        inputs = ProbeInputs(None, None, params, batch, key, jnp.int32(1))
        return probe.read(probe.measure(inputs, before))

    # Each of our products reads one half of the examples, so theirs read as many.
    def half(batch: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[: EXAMPLES // 2], batch)

    def matfree(params: Any, batch: Any, key: jax.Array) -> Any:
        estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
            stochtrace.monte_carlo_trace(),
            # Its signs have the dtype of the sample it is shown, which must be an array.
            stochtrace.sampler_signs(jnp.zeros(flat.shape, flat.dtype), num=products),
        )
        return estimate(given.flat_operator(params, half(batch)), key)

    def traceax_hutchinson(params: Any, batch: Any, key: jax.Array) -> Any:
        matrix = lineax.FunctionLinearOperator(
            given.flat_operator(params, half(batch)), flat, lineax.positive_semidefinite_tag
        )
        sampler = traceax.RademacherSampler(jnp.float32)
        return traceax.HutchinsonEstimator(sampler).estimate(key, matrix, products)[0]

    return {"fgo": ours, "matfree": matfree, "traceax": traceax_hutchinson}


def _compare(
    given: Problem,
    contestants: dict[str, Callable[..., Any]],
    rounds: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    calls, memory = {}, {}
    flat = ravel_pytree(given.params)[0]
    for name, function in contestants.items():
        is_flat = given.name == "diagonal" and name != "fgo"
        arguments = (flat if is_flat else given.params, given.batch, jax.random.key(0))
        compiled = jax.jit(function).lower(*arguments).compile()
        memory[name] = clock.peak_bytes(compiled)
        calls[name] = _bind(compiled, arguments)
    seconds = clock.interleaved(calls, rounds, progress)
    return {
        "seconds": {name: float(np.median(times)) for name, times in seconds.items()},
        "peak_bytes": memory,
        "peers": {
            name: _verdict(seconds["fgo"] / seconds[name], memory["fgo"] / memory[name])
            for name in contestants
            if name != "fgo"
        },
    }


def _bind(compiled: Any, arguments: tuple) -> Callable[[], Any]:
    return lambda: compiled(*arguments)


def _verdict(ratios: np.ndarray, memory: float) -> dict[str, Any]:
    ratio = clock.bounded(ratios)
    return {
        "time_ratio": ratio._asdict(),
        "memory_ratio": memory,
        "met": bool(ratio.upper <= LIMIT and memory <= 1.0),
    }
