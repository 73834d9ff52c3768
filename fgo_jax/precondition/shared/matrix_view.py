"""Leaves of any rank as matrices: which axes are the rows, which the columns."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from fgo_jax import _checks
from fgo_jax.precondition.shared.leaves import called
from fgo_jax.precondition.shared.modes import Modes

# As in optax.contrib.muon: MuonDimensionNumbers for all leaves; a tree of them, or a prefix of one,
# with None for each leaf that is no matrix; a function from the parameters to either; or None.
DimensionNumbers: TypeAlias = Any


def views(numbers: DimensionNumbers, tree: Any) -> list[Modes | None]:
    """A view of each leaf as a matrix; None for leaves that are no matrices."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    if not shapes or numbers is None:
        return [_default(shape) for shape in shapes]
    spread: list[Any] = []

    def collect(one: Any, below: Any) -> None:
        if not (one is None or isinstance(one, MuonDimensionNumbers)):
            raise ValueError(
                "weight_dimension_numbers must hold optax.contrib.MuonDimensionNumbers or None "
                f"per leaf of the parameters, or per subtree, got {type(one).__name__}."
            )
        spread.extend([one] * len(jax.tree.leaves(below)))

    def is_leaf(x: Any) -> bool:
        return x is None or isinstance(x, (MuonDimensionNumbers, optax.MaskedNode))

    given = called(numbers, tree, is_leaf)
    masked = optax.MaskedNode()
    given = jax.tree.map(lambda x: None if x == masked else x, given, is_leaf=is_leaf)
    jax.tree.map(collect, given, tree, is_leaf=is_leaf)
    return [_asked(one, shape) for one, shape in zip(spread, shapes, strict=True)]


def _default(shape: tuple[int, ...]) -> Modes | None:
    """The last axis against the rest; at rank 3, the cut that is closest to a square."""
    rank = len(shape)
    if rank < 2 or not math.prod(shape):
        return None
    cuts = range(1, rank) if rank == 3 else [rank - 1]
    cut = min(cuts, key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))
    view = Modes(shape, (tuple(range(cut)), tuple(range(cut, rank))))
    return None if 1 in view.dims else view


def _asked(numbers: MuonDimensionNumbers | None, shape: tuple[int, ...]) -> Modes | None:
    if numbers is None or not math.prod(shape):
        return None

    def normalise(axes: Any) -> tuple[int, ...]:
        axes = (axes,) if isinstance(axes, int) else tuple(map(operator.index, axes))
        if not all(-len(shape) <= a < len(shape) for a in axes):
            raise ValueError(
                f"{numbers} names an axis that a leaf of shape {shape} does not have: give such "
                "leaves None in weight_dimension_numbers, and they follow Adam."
            )
        return tuple(a % len(shape) for a in axes)

    rows, cols = normalise(numbers.reduction_axis), normalise(numbers.output_axis)
    if not rows or not cols or len(set(rows + cols)) < len(rows + cols):
        raise ValueError(
            f"{numbers} of a leaf of shape {shape} must name each axis once, and at least one "
            "for the rows and one for the columns."
        )
    batch = tuple(a for a in range(len(shape)) if a not in rows + cols)
    return Modes(shape, (rows, cols), batch)


def newton_schulz_coefficients(ns_coeffs: Any, ns_steps: int) -> list[list[float]]:
    """One triple (a, b, c) per step of the iteration."""
    _checks.positive_int("ns_steps", ns_steps)
    _checks.static("ns_coeffs", ns_coeffs)
    table = np.asarray(ns_coeffs, np.float64)
    if table.shape == (3,):
        table = np.tile(table, (ns_steps, 1))
    if table.ndim != 2 or table.shape[1] != 3 or len(table) < ns_steps:
        raise ValueError(
            f"ns_coeffs must be three numbers, or three for each of ns_steps={ns_steps} steps, "
            f"got shape {table.shape}."
        )
    return table[-ns_steps:].tolist()


# Five steps of Muon's: singular values between 0.7 and 1.2.
MUON = newton_schulz_coefficients((3.4445, -4.7750, 2.0315), 5)


def newton_schulz(
    x: jax.Array, view: Modes, coefficients: Sequence[Sequence[Any]], eps: Any
) -> jax.Array:
    """About U V^T of every matrix X = U S V^T, by X <- a X + (b A + c A^2) X, A = X X^T.

    The products have the device's default precision, as in Muon: the iteration is approximate.
    """
    x = x / (jnp.sqrt(view.reduce(jnp.sum, jnp.square(x))) + eps)
    side = 0 if view.dims[0] <= view.dims[1] else 1
    for a, b, c in coefficients:
        gram = view.gram(x, side, precision=None)
        x = a * x + view.multiply(x, b * gram + c * jnp.matmul(gram, gram), side, precision=None)
    return x
