"""An update that compiles once where it is called outside `jax.jit`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core


def compiled_once(update: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, under a `jax.jit` of its own.

    Outside `jax.jit`, a conditional whose branches are closures is compiled at every call: the
    default optimizer took 3 to 4 seconds a step. With this it compiles at the first call. Inside
    `jax.jit` the function is inlined, so the program does not change.

    A bool or string among the extra arguments stays static, so that an `if` can read it; each value
    compiles once. A number may be the step count, so it becomes an array, of floats where an
    integer is beyond int32, such as a count of tokens. Inside `jax.jit` numbers stay as they are
    too.

    A call with an argument that is no array, such as a function for another member of a chain,
    runs as before.
    """

    @functools.partial(jax.jit, static_argnums=0, inline=True)
    def compiled(fixed: Any, /, *args: Any, **kwargs: Any) -> Any:
        return update(*args, **dict(fixed), **kwargs)

    @functools.wraps(update)
    def call(*args: Any, **kwargs: Any) -> Any:
        fixed = {name: x for name, x in kwargs.items() if isinstance(x, (bool, str))}
        rest = {name: x for name, x in kwargs.items() if name not in fixed}
        leaves, extras = jax.tree.leaves((args, rest)), jax.tree.leaves(rest)
        plain = not all(map(_is_array, leaves)) or any(isinstance(x, bool) for x in extras)
        if any(isinstance(leaf, core.Tracer) for leaf in leaves):
            plain = plain or bool(fixed) or any(map(_is_number, extras))
        if plain:
            return update(*args, **kwargs)
        return compiled(tuple(sorted(fixed.items())), *args, **jax.tree.map(_held, rest))

    return call


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic)) or _is_number(leaf)


def _held(leaf: Any) -> Any:
    """The leaf; a Python integer that overflows JAX's integers as a float."""
    if not isinstance(leaf, int):
        return leaf
    limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(np.int64))
    return leaf if limits.min <= leaf <= limits.max else float(leaf)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, complex))
