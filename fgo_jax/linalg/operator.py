"""What every probe of a curvature operator shares."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax import _checks

# `(params, batch) -> matvec`, as fgo_jax.curvature makes them; some also take `key=`.
Operator = Callable[..., Callable[[Any], Any]]

# `split(key, n)` may give `fold_in(key, i)` for i < n: far from all that a probe splits off.
_DRAWS = 0x6472_6177


def bind(operator: Operator, params: Any, batch: Any, key: jax.Array, part: Any = 0) -> Any:
    """`operator(params, batch)`, with a key of its own where the operator requires `key=`.

    That key is no other one that a probe splits off or folds out of `key`, and the numbers
    of an operator without one are the same whatever `key` is. Parts of one measurement that
    must not share their draws, such as the halves of a batch, are numbered by `part`.
    """
    if not _requires_key(operator):
        return operator(params, batch)
    drawn = jax.random.fold_in(jax.random.fold_in(key, _DRAWS), part)
    return operator(params, batch, key=drawn)


def _requires_key(operator: Operator) -> bool:
    try:
        parameters = inspect.signature(operator).parameters
    except (TypeError, ValueError):  # a builtin, say, which does not tell
        return False
    # The first two are the parameters and the batch, whatever they are called.
    key = dict(list(parameters.items())[2:]).get("key")
    if key is None or key.default is not inspect.Parameter.empty:
        return False
    return key.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def random_signs(key: jax.Array, like: Any) -> Any:
    """Independent signs shaped like a pytree, float32; 32 of them from each word of the generator.

    Along the last axis, so that no other one, which may be sharded, is reshaped.
    """
    leaves, treedef = jax.tree.flatten(like)

    def draw(key: jax.Array, leaf: Any) -> jax.Array:
        *outer, last = jnp.shape(leaf) or (1,)
        words = jax.random.bits(key, (*outer, -(-last // 32)), jnp.uint32)
        shape = (*words.shape, 32)
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
        bits = (jnp.broadcast_to(words[..., None], shape) >> place) & 1
        bits = bits.reshape(*outer, 32 * words.shape[-1])[..., :last]
        return jnp.where(bits == 1, 1.0, -1.0).astype(jnp.float32).reshape(jnp.shape(leaf))

    return treedef.unflatten(map(draw, jax.random.split(key, len(leaves)), leaves))


def is_due(step: jax.Array, every: Any) -> jax.Array:
    return (step > 0) & (step % jnp.asarray(every, step.dtype) == 0)


def check_examples(
    examples: int | None, batch_size: int | None, minimum: int, multiple: int = 1
) -> None:
    """Raises where the declared sizes cannot be met by any batch."""
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
    """How many leading examples of a batch to read; a static number."""
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
    """How much wider than a normal's Student's 95 % interval is, at f degrees of freedom.

    An error estimated from few draws is itself uncertain; times this, 1.96 of it cover
    the truth as often as they should. The distribution function is a finite sum in
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
