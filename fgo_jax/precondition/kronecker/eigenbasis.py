"""Kronecker factors of a gradient, and the orthogonal bases that diagonalise them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.linalg import mesh
from fgo_jax.precondition.shared.leaves import f32
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers, views
from fgo_jax.precondition.shared.modes import Modes, identity
from fgo_jax.precondition.shared.over_matrices import over_matrices
from fgo_jax.precondition.shared.stacks import Stack

# The rounding error of a float32, relative to the largest entry.
_ROUNDING = float(jnp.finfo(jnp.float32).eps)

# Least eigenvalue of a direction that gradients have visited, relative to the largest: a thousand
# rounding errors.
_VISITED = 1e-4

# The arrays of a stack of leaves, one per mode; and those of all stacks.
Factors = tuple[jax.Array, ...]
Leaves = tuple[Factors, ...]


class Moments(NamedTuple):
    """The moments in the eigenbasis, an item for each stack."""

    first: tuple[jax.Array, ...]
    second: tuple[Any, ...]  # () where the eigenvalues stand for it
    eigenvalues: Leaves  # [*batch, d] of each factor; () where second moments are tracked


def modes_of(tree: Any, numbers: DimensionNumbers, vector_factors: bool) -> list[Modes]:
    """For each leaf the modes that may have a factor: its axes, or the sides of its matrices.

    Axes of length one do not count: (1, d) and (d, 1) are vectors.
    """
    shapes = [jnp.shape(x) for x in jax.tree.leaves(tree)]
    if numbers is not None:
        return [
            Modes(shape, ()) if view is None else view.only(lambda d: d > 1)
            for shape, view in zip(shapes, views(numbers, tree), strict=True)
        ]

    def axis_by_axis(shape: tuple[int, ...]) -> Modes:
        long = [axis for axis, dim in enumerate(shape) if dim > 1]
        if math.prod(shape) == 0 or (len(long) == 1 and not vector_factors):
            long = []
        return Modes(shape, tuple((axis,) for axis in long))

    return list(map(axis_by_axis, shapes))


def start(stack: Stack, leaves: Sequence[Any], dtype: Any) -> tuple[Factors, Factors]:
    """Zero factors and identity bases of a stack, split over a mesh like its blocks."""
    device = stack.device_of_factor(leaves, stack.modes)
    dtype = jnp.dtype(dtype or jnp.float32)
    shapes = stack.modes.factor_shapes
    return (
        tuple(mesh.made(jnp.zeros, shape, dtype, device) for shape in shapes),
        tuple(identity(shape, device, dtype) for shape in shapes),
    )


def averaged(
    factors: Leaves,
    gradients: Sequence[jax.Array],
    modes: Sequence[Modes],
    good: Sequence[jax.Array],
    decay: Any,
    stays: Any = 1,
) -> Leaves:
    """L <- decay L + (1 - decay) G_(k) G_(k)^T for every mode k, or `stays` L for a bad leaf.

    In float32. A refresh precedes rounding to the state's dtype, which would fill directions of
    a first factor that have no gradient yet.
    """
    return tuple(
        mesh.put_on_batch(
            tuple(
                jnp.where(
                    m.per_factor(ok),
                    decay * f32(f) + (1 - decay) * m.gram(g, k),
                    stays * f32(f),
                )
                for k, f in enumerate(fs)
            ),
            g,
            m.batch,
        )
        for fs, g, m, ok in zip(factors, gradients, modes, good, strict=True)
    )


def _at_home(
    bases: Leaves, moments: Moments, gradients: Sequence[jax.Array], modes: Sequence[Modes]
) -> tuple[Leaves, Moments]:
    """The bases and eigenvalues of every stack, split over its mesh like its blocks."""
    values = moments.eigenvalues
    pairs = [
        mesh.put_on_batch((q, values[i] if values else ()), g, m.batch)
        for i, (q, g, m) in enumerate(zip(bases, gradients, modes, strict=True))
    ]
    return tuple(q for q, _ in pairs), moments._replace(eigenvalues=tuple(v for _, v in pairs))


def rotate(x: jax.Array, bases: Factors, modes: Modes) -> jax.Array:
    """Coordinates of x in the eigenbasis: Q^T along each mode."""
    for k, q in enumerate(bases):
        x = modes.multiply(x, f32(q), k, transpose=True)
    return x


def rotate_back(x: jax.Array, bases: Factors, modes: Modes) -> jax.Array:
    """The inverse of `rotate`."""
    for k, q in enumerate(bases):
        x = modes.multiply(x, f32(q), k)
    return x


def _unit_trace(factor: jax.Array) -> jax.Array:
    """The factor divided by its trace, so that no product under- or overflows; zero stays zero."""
    trace = jnp.trace(factor)
    return factor / jnp.where(trace == 0, 1.0, trace)


def _eigenvectors(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A basis for the factor, and the old column that each of its columns continues."""
    return jax.lax.cond(jnp.any(basis != 0), _warm, _fresh, f32(factor), f32(basis))


def _fresh(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors by falling eigenvalue. The first refresh uses this: no second moment yet.

    The larger side of a kernel has directions that the first gradients did not visit, and in a null
    space rounding alone decides what `eigh` returns. Adam is not invariant to that: two devices
    that sum a batch in another order would be 1 % apart after the second step. So the eigenvectors
    are completed by Householder reflections instead, which move no more than the eigenvectors do.
    """
    del basis
    values, vectors = jnp.linalg.eigh(_unit_trace(factor))
    values, vectors = values[::-1], vectors[:, ::-1]
    # The reflections depend on the signs, which `eigh` leaves open.
    heads = jnp.cos(jnp.arange(len(values), dtype=jnp.float32))
    signed = jnp.where(jnp.matmul(heads, vectors, precision="highest") < 0, -vectors, vectors)
    # A column of zeros makes no reflection: what is left of the identity completes the basis.
    q = jnp.linalg.qr(jnp.where(values > _VISITED * values[0], signed, 0.0))[0]
    return q, jnp.arange(len(values), dtype=jnp.int32)


def _warm(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of orthogonal iteration, columns sorted by their Rayleigh quotients.

    A multiple of Q added to L Q shifts all eigenvalues and changes no eigenvector. Its size here is
    the rounding error of the product, so L = 0 keeps Q. If a side is more than `refresh_every`
    times as long as the other, the gradients since the last refresh do not span it, and rounding
    sets the remaining columns. No small shift prevents that: linearly dependent columns amplify
    every difference of bases.
    """
    image = jnp.matmul(_unit_trace(factor), basis, precision="highest") + _ROUNDING * basis
    order = jnp.argsort(-jnp.sum(basis * image, axis=0)).astype(jnp.int32)
    return jnp.linalg.qr(image[:, order])[0], order


def _inverse(basis: jax.Array) -> jax.Array:
    """Inverse of the transposed basis: the basis itself, unless rounded to few digits.

    Rotating back then errs by the square of the rounding only. With the rounded basis itself
    the error would grow from refresh to refresh.
    """
    if basis.dtype == jnp.float32:
        return basis
    basis = f32(basis)
    square = jnp.matmul(jnp.swapaxes(basis, -1, -2), basis, precision="highest")
    return jnp.matmul(basis, 2 * jnp.eye(basis.shape[-1]) - square, precision="highest")


def _quotients(factor: jax.Array, basis: jax.Array) -> jax.Array:
    """Rayleigh quotients of the columns of a basis, >= 0."""
    return jnp.maximum(
        jnp.sum(basis * jnp.matmul(factor, basis, precision="highest"), axis=-2), 0.0
    )


def _refresh(
    how: jax.Array,
    factors: Leaves,
    bases: Leaves,
    modes: Sequence[Modes],
    moments: Moments,
    unbiased: jax.Array,
) -> tuple[Leaves, Moments]:
    """Refines every basis, or makes a new one, and carries the moments along."""
    places = [(i, k) for i, leaf in enumerate(factors) for k in range(len(leaf))]
    # Zeros mark a missing basis, so that both methods share one loop.
    found = over_matrices(
        _eigenvectors,
        [factors[i][k] for i, k in places],
        [jnp.where(how == 2, 0, bases[i][k]) for i, k in places],
    )
    new = dict(zip(places, found, strict=True))
    old = tuple(tuple(map(_inverse, leaf)) for leaf in bases)
    bases = tuple(
        tuple(new[i, k][0].astype(q.dtype) for k, q in enumerate(leaf))
        for i, leaf in enumerate(bases)
    )
    first = tuple(
        rotate(rotate_back(f32(x), before, m), after, m).astype(x.dtype)
        for x, before, after, m in zip(moments.first, old, bases, modes, strict=True)
    )
    if any(moments.eigenvalues):
        values = tuple(
            tuple(_quotients(f32(f) / unbiased, f32(q)) for f, q in zip(*leaf, strict=True))
            for leaf in zip(factors, bases, strict=True)
        )
        return bases, Moments(first, moments.second, values)
    # Entry j of a mode is the moment along column j, so squares are permuted like the columns.
    second = list(moments.second)
    for i, k in places:
        order = new[i, k][1]
        selection = jax.nn.one_hot(order, order.shape[-1], dtype=jnp.float32)
        second[i] = modes[i].multiply(second[i], selection, k)
    return bases, Moments(first, tuple(second), moments.eigenvalues)


def refresh_kind(step: jax.Array, every: Any, factors: Leaves, eigenvalues: Leaves) -> jax.Array:
    """0 keeps the bases, 1 refines them, 2 makes new ones; `step` counts the updates before."""
    due = step % jnp.asarray(every, jnp.int32) == 0
    first = step == 0
    # Eigenvalues that are all zero would divide a gradient by eps until the next refresh.
    for leaf, values in zip(factors, eigenvalues or (), strict=False):
        if leaf:
            trace = jnp.trace(leaf[0], axis1=-2, axis2=-1)
            first = first | jnp.any((trace > 0) & (jnp.sum(values[0], axis=-1) == 0))
    return jnp.where(first, 2, jnp.where(due, 1, 0))


def refresh(
    how: jax.Array,
    factors: Leaves,
    bases: Leaves,
    gradients: Sequence[jax.Array],
    modes: Sequence[Modes],
    moments: Moments,
    unbiased: jax.Array,
) -> tuple[Leaves, Moments]:
    """New bases, and the moments in them, all inside one conditional.

    Args:
      how: 0 keeps the bases, 1 refines them, 2 makes new ones.
      factors: of each stack, [*batch, d, d] per mode.
      bases: like the factors.
      gradients: of each stack; bases and eigenvalues lie on a mesh like their blocks.
      modes: of each stack.
      moments: of each stack, in the coordinates of its basis.
      unbiased: the factors' bias correction.
    """
    bases, moments = _at_home(bases, moments, gradients, modes)
    if not any(factors):
        return bases, moments
    bases, moments = jax.lax.cond(
        how > 0,
        lambda h, f, q, v, u: _refresh(h, f, q, modes, v, u),
        lambda h, f, q, v, u: (q, v),
        how,
        factors,
        bases,
        moments,
        unbiased,
    )
    return _at_home(bases, moments, gradients, modes)  # else they may move
