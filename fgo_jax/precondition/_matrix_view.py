"""Leaves of any rank as matrices, without a reshape of the leaf."""

from __future__ import annotations

import math
import operator
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from fgo_jax import _checks

# As in optax.contrib.muon: one for all, a tree (or a prefix of one) with None where a leaf is no
# matrix, or a function from the parameters to either.
DimensionNumbers = MuonDimensionNumbers | Any | Callable[[Any], Any] | None


class MatrixView(NamedTuple):
    """Which axes of a leaf are rows, columns and batch; every axis has a letter, for einsum.

    What is contracted are the axes themselves, so that a sharded one stays as it is. Only factors
    are reshaped: [*batch, rows, rows] is small, and replicated.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], tuple[int, ...]]  # of the rows, of the columns

    def _letters(self, axes: Sequence[int]) -> str:
        return "".join(string.ascii_lowercase[a] for a in axes)

    @property
    def leaf(self) -> str:
        return self._letters(range(len(self.shape)))

    @property
    def batch_axes(self) -> tuple[int, ...]:
        return tuple(a for a in range(len(self.shape)) if a not in self.axes[0] + self.axes[1])

    @property
    def dims(self) -> tuple[int, int]:
        """Numbers of rows and of columns."""
        rows, cols = (math.prod(self.shape[a] for a in axes) for axes in self.axes)
        return rows, cols

    def factor_shape(self, side: int) -> tuple[int, ...]:
        return (*(self.shape[a] for a in self.batch_axes), self.dims[side], self.dims[side])

    def reduce(self, function: Callable, x: jax.Array) -> jax.Array:
        """A reduction over each matrix, kept in the rank of the leaf."""
        return function(x, axis=self.axes[0] + self.axes[1], keepdims=True)

    def per_factor(self, x: jax.Array) -> jax.Array:
        """What `reduce` gives, [*batch, 1, 1]: it broadcasts against a factor."""
        return jnp.squeeze(x, self.axes[0] + self.axes[1])[..., None, None]

    def gram(self, x: jax.Array, side: int, precision: Any = None) -> jax.Array:
        """X X^T for side 0 and X^T X for side 1, [*batch, d, d]."""
        kept, batch = self._letters(self.axes[side]), self._letters(self.batch_axes)
        product = jnp.einsum(
            f"{self.leaf},{_raised(self.leaf, kept)}->{batch}{kept}{kept.upper()}",
            x,
            x,
            precision=precision,
            out_sharding=_on_mesh(x, len(batch) + 2 * len(kept)),
        )
        return product.reshape(self.factor_shape(side))

    def multiply(self, x: jax.Array, factor: jax.Array, side: int) -> jax.Array:
        """A X for side 0 and X A for side 1, A symmetric; sharded as X."""
        kept, batch = self._letters(self.axes[side]), self._letters(self.batch_axes)
        sizes = tuple(self.shape[a] for a in self.axes[side])
        factor = factor.reshape(tuple(self.shape[a] for a in self.batch_axes) + sizes + sizes)
        return jnp.einsum(
            f"{batch}{kept}{kept.upper()},{_raised(self.leaf, kept)}->{self.leaf}",
            factor,
            x,
            out_sharding=_on_mesh(x),
        )


def _raised(leaf: str, letters: str) -> str:
    return "".join(c.upper() if c in letters else c for c in leaf)


def _on_mesh(x: jax.Array, rank: int | None = None) -> Any:
    """The sharding of x, or of a replicated array of that rank, where a mesh has explicit axes."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return None
    spec = sharding.spec if rank is None else jax.sharding.PartitionSpec(*(None,) * rank)
    return jax.sharding.NamedSharding(sharding.mesh, spec)


def views(numbers: DimensionNumbers, tree: Any) -> list[MatrixView | None]:
    """A view for each leaf of the tree; None for leaves that are no matrices."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    if not shapes or numbers is None:
        return [_default(shape) for shape in shapes]
    given: Any = numbers
    if callable(given):
        given = given(tree)
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

    masked = optax.MaskedNode()
    given = jax.tree.map(lambda x: None if x == masked else x, given, is_leaf=is_leaf)
    jax.tree.map(collect, given, tree, is_leaf=is_leaf)
    return [_asked(one, shape) for one, shape in zip(spread, shapes, strict=True)]


def _default(shape: tuple[int, ...]) -> MatrixView | None:
    """The last axis of a convolution against the rest; the squarest cut of a rank-3 kernel."""
    rank = len(shape)
    if rank < 2 or not math.prod(shape):
        return None
    cuts = range(1, rank) if rank == 3 else [rank - 1]
    cut = min(cuts, key=lambda k: math.prod(shape[:k]) + math.prod(shape[k:]))
    view = MatrixView(shape, (tuple(range(cut)), tuple(range(cut, rank))))
    return None if 1 in view.dims else view


def _asked(numbers: MuonDimensionNumbers | None, shape: tuple[int, ...]) -> MatrixView | None:
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
    return MatrixView(shape, (rows, cols))


def newton_schulz_coefficients(ns_coeffs: Any, ns_steps: int) -> list[list[float]]:
    """One (a, b, c) per step of the iteration."""
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


def newton_schulz(
    x: jax.Array, view: MatrixView, coefficients: Sequence[Sequence[Any]], eps: Any
) -> jax.Array:
    """Roughly U V^T of every matrix X = U S V^T, by X <- a X + (b A + c A^2) X, A = X X^T."""
    x = x / (jnp.sqrt(view.reduce(jnp.sum, jnp.square(x))) + eps)
    side = 0 if view.dims[0] <= view.dims[1] else 1
    for a, b, c in coefficients:
        gram = view.gram(x, side)
        x = a * x + view.multiply(x, b * gram + c * jnp.matmul(gram, gram), side)
    return x
