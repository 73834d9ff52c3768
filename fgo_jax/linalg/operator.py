"""Curvature operators, and what every probe of one needs: keys, signs, example counts, errors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.linalg import devices, mesh
from fgo_jax.linalg.draws import drawn_like

# `(params, batch) -> matvec`, as fgo_jax.curvature makes them; some also require `key=`.
Operator = Callable[..., Callable[[Any], Any]]

# `split(key, n)` may give `fold_in(key, i)` for i < n. This number is far above any such i.
_DRAWS = 0x6472_6177


def bind(
    operator: Operator,
    params: Any,
    batch: Any,
    key: jax.Array,
    part: Any = 0,
    axis_name: devices.AxisName = None,
) -> Any:
    """`operator(params, batch)`, with a key of its own where the operator requires `key=`.

    That key differs from all others that a probe derives from `key`. An operator that
    requires no key does not depend on it. Parts of one measurement that must draw
    independently, such as the halves of a batch, have different numbers `part`. With
    `axis_name` the result is of this device's part of the batch, with draws of its own.
    """
    params = devices.on_each_device(params, batch, axis_name)
    if not _requires_key(operator):
        return operator(params, batch)
    drawn = jax.random.fold_in(jax.random.fold_in(key, _DRAWS), part)
    if axis_name is not None:
        drawn = jax.random.fold_in(drawn, jax.lax.axis_index(axis_name))
    return operator(params, batch, key=drawn)


def bind_matvec(
    operator: Operator,
    params: Any,
    batch: Any,
    key: jax.Array,
    part: Any = 0,
    axis_name: devices.AxisName = None,
) -> Callable[[Any], Any]:
    """As `bind`, for an operator that must return a matvec; it takes equal vectors everywhere."""
    matvec = bind(operator, params, batch, key, part, axis_name)
    if not callable(matvec):
        shapes = jax.tree.map(jnp.shape, matvec)
        raise ValueError(
            "operator must return a function from a vector to its product, got arrays of shape "
            f"{shapes}: make an operator of a loss by fgo.curvature.hessian(loss_fn), or of a "
            "model by fgo.curvature.ggn(predict_fn)."
        )
    axes = devices.varying_axes(batch, axis_name)
    return (lambda vector: matvec(devices.as_varying(vector, axes))) if axes else matvec


def bind_mean(
    operator: Operator,
    params: Any,
    batch: Any,
    key: jax.Array,
    part: Any = 0,
    axis_name: devices.AxisName = None,
) -> Callable[[Any], Any]:
    """The matvec of the mean over the devices of `axis_name`; products in float32."""
    matvec = bind_matvec(operator, params, batch, key, part, axis_name)
    return lambda vector: devices.mean_over(axis_name, matvec(vector))


def check_operator(operator: Any) -> None:
    """Raises for what cannot be an operator."""
    _checks.function("operator", operator, "(params, batch) -> matvec")


def named(function: Callable, kind: str, of: Any = None) -> Any:
    """The function with a label for reports, such as "ggn of softmax_cross_entropy"."""
    function.__dict__["label"] = kind if of is None else f"{kind} of {name_of(of)}"
    return function


def name_of(function: Any) -> str:
    """What a report calls a loss or an operator."""
    if isinstance(function, str):
        return function
    inner = getattr(function, "func", function)  # of a `functools.partial`
    name = getattr(inner, "label", getattr(inner, "__name__", type(inner).__name__))
    return "a function" if name == "<lambda>" else name


def _requires_key(operator: Operator) -> bool:
    try:
        parameters = inspect.signature(operator).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    # The first two are the parameters and the batch, whatever they are called.
    key = dict(list(parameters.items())[2:]).get("key")
    if key is None or key.default is not inspect.Parameter.empty:
        return False
    return key.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def random_signs(key: jax.Array, like: Any) -> Any:
    """Independent random signs shaped like a pytree, float32; 32 from each random word.

    Words are unpacked along the last axis, so that no other axis, which may be sharded, is
    reshaped.
    """

    def draw(key: jax.Array, leaf: Any) -> jax.Array:
        *outer, last = jnp.shape(leaf) or (1,)
        words = jax.random.bits(key, (*outer, -(-last // 32)), jnp.uint32)
        shape = (*words.shape, 32)
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
        bits = (jnp.broadcast_to(words[..., None], shape) >> place) & 1
        bits = bits.reshape(*outer, 32 * words.shape[-1])[..., :last]
        signs = jnp.where(bits == 1, 1.0, -1.0).astype(jnp.float32).reshape(jnp.shape(leaf))
        return mesh.placed_like(signs, leaf)

    return drawn_like(draw, key, like)


def is_due(step: jax.Array, every: Any) -> jax.Array:
    """Whether a step is one of `every, 2 * every, ...`."""
    return (step > 0) & (step % jnp.asarray(every, step.dtype) == 0)


def check_examples(
    examples: int | None, batch_size: int | None, minimum: int, multiple: int = 1
) -> None:
    """Raises where no batch can have the declared sizes."""
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size, minimum)
    if examples is None:
        return
    _checks.positive_int("examples", examples, minimum)
    if examples % multiple:
        raise ValueError(
            f"examples must be a multiple of {multiple} to be cut into equal halves, got "
            f"{examples}: pass {examples + multiple - examples % multiple}."
        )
    if batch_size is not None and examples > batch_size:
        raise ValueError(
            f"examples={examples} cannot be read from batch_size={batch_size}: pass at most "
            f"{batch_size}, or examples=None for an eighth of the batch."
        )


def example_count(
    batch: Any, *, examples: int | None, batch_size: int | None, minimum: int, multiple: int = 1
) -> int:
    """How many leading examples of a batch to read, as a Python integer."""
    shapes = {
        jax.tree_util.keystr(path) or "batch": jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
    }
    if not shapes:
        raise ValueError("batch has no arrays: pass batch= with examples along axis 0.")
    sizes = {shape[0] for shape in shapes.values() if shape}
    if len(sizes) != 1 or () in shapes.values():
        listed = ", ".join(
            f"{name} has {shape[0] if shape else 'no axis'}" for name, shape in shapes.items()
        )
        raise ValueError(
            f"every leaf of batch needs the same examples along axis 0, but {listed}: pass only "
            "such arrays as batch=, and close over the rest in predict_fn."
        )
    (size,) = sizes
    if batch_size is not None and size != batch_size:
        raise ValueError(
            f"probe was built for batch_size={batch_size} but got {size} examples; pass "
            f"batch_size={size}, or leave batch_size=None."
        )
    needed = minimum if examples is None else examples
    if size < needed:
        raise ValueError(
            f"the probe reads {needed} examples but batch has {size}: pass a larger batch"
            + ("." if examples is None else f", or examples= of at most {size}.")
        )
    return max(minimum, size // 8 // multiple * multiple) if examples is None else examples


def student_width(freedom: int) -> float:
    """Student's 95 % quantile over the normal one, at f degrees of freedom.

    A standard error from few draws is itself uncertain. With this factor, 1.96 standard errors
    cover the truth in 95 % of cases. The distribution function is a finite sum in
    t = sqrt(f) tan(angle) (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """

    def inside(angle: float) -> float:
        cosine, term, total = math.cos(angle), 1.0, 0.0
        odd = freedom % 2
        if odd:
            term = cosine
        for j in range(freedom // 2):
            total += term
            term *= cosine**2 * ((2 * j + 2) / (2 * j + 3) if odd else (2 * j + 1) / (2 * j + 2))
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < 0.95 else (low, middle)
    return freedom**0.5 * math.tan(low) / 1.959964
