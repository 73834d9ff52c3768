"""What an optimizer does with each leaf of a model, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax

from fgo_jax import _checks
from fgo_jax.precondition.shared.notes import Note, listening


def describe(optimizer: optax.GradientTransformation, params: Any) -> str:
    """A table of the leaves: which have factors, of what size, which have none, and why.

    It only traces `init`, so it allocates nothing. It finds K-FAC, FISMO, Mousse and the Kronecker
    Fisher inside `optax.chain`, `optax.masked`, :func:`fgo_jax.phased` and other wrappers.

    Args:
      optimizer: any gradient transformation.
      params: the parameters, or their shapes as `jax.ShapeDtypeStruct`.

    Returns:
      A table to print. Its last column is the memory of factors and bases, in bytes per parameter;
      its last line is that of the whole state.

    Raises:
      ValueError: what `optimizer.init` raises for these parameters.

    >>> import jax.numpy as jnp
    >>> import fgo_jax as fgo
    >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.zeros(4)}
    >>> print(fgo.describe(fgo.scale_by_kronecker_fisher(block_size=4), params))
    scale_by_kronecker_fisher
    leaf    shape  treatment                                      bytes/parameter
    bias    4      a vector, as Adam                                          0.0
    kernel  8 x 4  2 x 1 blocks, each with factors of 4 and of 4             16.0
    <BLANKLINE>
    state: 804 bytes, 22.3 bytes per parameter

    Source: this library.
    """
    _checks.transform("optimizer", optimizer)
    with listening() as notes:
        # A function of its own: JAX remembers what it has traced, and would not call `init` again.
        state = jax.eval_shape(lambda params: optimizer.init(params), params)
    lines: list[str] = []
    for name in dict.fromkeys(note.transform for note in notes):
        mine = list(dict.fromkeys(note for note in notes if note.transform == name))
        lines += [name, *_table(mine), ""]
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(lambda: params)))
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    size, unit = next((total / s, u) for s, u in _UNITS if total >= s or s == 1)
    lines.append(f"state: {size:.3g} {unit}, {total / max(count, 1):.1f} bytes per parameter")
    return "\n".join(lines)


_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))


def _table(notes: Sequence[Note]) -> list[str]:
    rows = [("leaf", "shape", "treatment", "bytes/parameter")]
    for note in notes:
        each = note.own_bytes / max(math.prod(note.shape), 1)
        shape = " x ".join(map(str, note.shape)) or "scalar"
        rows.append((note.leaf or "(the whole tree)", shape, note.treatment, f"{each:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=False))])
        + "  "
        + row[-1].rjust(widths[-1])
        for row in rows
    ]
