"""Time and memory of the probes beside matfree's and traceax's estimators.

Everyone gets the same operator at the same parameters and as many products with it; what
differs is what surrounds the products. The peers work on flat vectors. For the cheap
`diagonal` operator they get it as a flat vector too, which is their best form; a model's
operator takes a pytree, so there they ravel and unravel, as their users have to.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import fgo_jax as fgo
from benchmarks.runs import timing
from fgo_jax.linalg import krylov_space, random_block
from fgo_jax.probes import ProbeInputs

LIMIT = 1.05  # of a ratio's upper bound
LAYERS = {"100k": (64, 256, 256, 64, 10), "10M": (512, 2048, 2048, 2048, 10)}
EXAMPLES = 32
STEPS = 12  # of Lanczos, the probe's default
VECTORS = 4  # of Hutchinson, the probe's default; two products each


class Model(NamedTuple):
    """A classifier at its parameters, with the examples whose Fisher is measured."""

    params: Any
    batch: Any
    predict: Callable[[Any, Any], Any]


def mlp(sizes: tuple[int, ...] = (16, 32, 10), examples: int = 256, bias: float = 0.0) -> Model:
    keys = jax.random.split(jax.random.key(0), len(sizes))
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.full(shape[1], bias)}
        for key, shape in zip(keys[1:], itertools.pairwise(sizes), strict=True)
    ]
    # Inputs of unequal variance, as data are: a spectrum that decays.
    scales = jnp.exp(-jnp.arange(sizes[0]) / 4.0)
    batch = {"x": 2.0 * scales * jax.random.normal(keys[0], (examples, sizes[0]))}
    return Model(params, batch, mlp_predict)


def mlp_predict(params: Any, batch: Any) -> jax.Array:
    x = batch["x"]
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


class Problem(NamedTuple):
    """An operator in both forms, with the arguments that are traced."""

    params: Any
    batch: Any
    operator: Callable[[Any, Any], Callable[[Any], Any]]
    flat_params: Any  # what the flat operator takes in their place
    flat_operator: Callable[[Any, Any], Callable[[jax.Array], jax.Array]]


def problem(kind: str, layers: tuple[int, ...]) -> Problem:
    params = mlp(layers, EXAMPLES, bias=0.1).params
    batch = {"x": jax.random.normal(jax.random.key(1), (EXAMPLES, layers[0]))}
    flat, unravel = ravel_pytree(params)
    if kind == "diagonal":
        # Its entries are the parameters' squares, and it depends on the examples read.
        def diagonal(params: Any, batch: Any) -> Callable[[Any], Any]:
            scale = jnp.mean(jnp.square(batch["x"]))
            return lambda vector: jax.tree.map(lambda p, v: scale * p * p * v, params, vector)

        return Problem(params, batch, diagonal, flat, diagonal)
    ggn = fgo.curvature.ggn(mlp_predict, "softmax_cross_entropy")

    def ravelled(params: Any, batch: Any) -> Callable[[jax.Array], jax.Array]:
        matvec = ggn(params, batch)
        return lambda vector: ravel_pytree(matvec(unravel(vector)))[0]

    return Problem(params, batch, ggn, params, ravelled)


def measure(layers: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each task, operator and peer."""
    rows = []
    for kind in ("diagonal", "ggn"):
        given = problem(kind, layers)
        size = int(optax.tree.size(given.params))
        for task, contest in (("lanczos", _lanczos), ("trace", _trace)):
            compared = _compare(given, contest(given), rounds)
            named = {"parameters": size, "task": task, "operator": kind}
            rows += [{**named, **row} for row in compared]
    return rows


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
    given: Problem, contestants: dict[str, Callable[..., Any]], rounds: int
) -> list[dict[str, Any]]:
    """A row for each peer."""
    calls, memory = {}, {}
    for name, function in contestants.items():
        params = given.params if name == "fgo" else given.flat_params
        arguments = (params, given.batch, jax.random.key(0))
        compiled = jax.jit(function).lower(*arguments).compile()
        used: Any = compiled.memory_analysis()
        memory[name] = int(used.temp_size_in_bytes + used.output_size_in_bytes)
        calls[name] = functools.partial(compiled, *arguments)
    seconds, rows = timing.interleaved(calls, rounds), []
    for peer in [name for name in contestants if name != "fgo"]:
        ratio = timing.bounded(seconds["fgo"] / seconds[peer])
        memory_ratio = memory["fgo"] / memory[peer]
        rows.append({
            "peer": peer, "seconds": float(np.median(seconds["fgo"])),
            "peer_seconds": float(np.median(seconds[peer])), "peak_bytes": memory["fgo"],
            "peer_peak_bytes": memory[peer], "time_ratio": ratio.median,
            "time_ratio_upper": ratio.upper, "memory_ratio": memory_ratio,
            "met": ratio.upper <= LIMIT and memory_ratio <= 1.0,
        })  # fmt: skip
    return rows
