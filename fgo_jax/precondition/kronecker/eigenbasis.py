"""Kronecker factors of a gradient and the orthogonal bases that diagonalise them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.precondition.shared import mesh
from fgo_jax.precondition.shared.modes import Modes

# What one rounding of a float32 loses, relative to the largest entry.
_ROUNDING = float(jnp.finfo(jnp.float32).eps)

# One array for each mode of a leaf, and all of that for each leaf.
Factors = tuple[jax.Array, ...]
Leaves = tuple[Factors, ...]


def axis_by_axis(shape: tuple[int, ...], max_dim: int, vector_factors: bool) -> Modes:
    """A mode for every axis that has a factor of its own.

    Axes of length one are invisible: (1, d) and (d, 1) count as vectors.
    """
    long = [axis for axis, dim in enumerate(shape) if dim > 1]
    if math.prod(shape) == 0 or (len(long) == 1 and not vector_factors):
        long = []
    return Modes(shape, tuple((axis,) for axis in long if shape[axis] <= max_dim))


def start(x: jax.Array, modes: Modes) -> tuple[Factors, Factors]:
    """Zero factors and identity bases of a leaf, replicated on the mesh that it lies on."""
    device = mesh.device_of_new(x)
    shapes = [modes.factor_shape(k) for k in range(len(modes.groups))]

    def identity(shape: tuple[int, ...]) -> jax.Array:
        return jnp.array(jnp.broadcast_to(jnp.eye(shape[-1]), shape), jnp.float32, device=device)

    return (
        tuple(jnp.zeros(shape, jnp.float32, device=device) for shape in shapes),
        tuple(map(identity, shapes)),
    )


def rotate(x: jax.Array, bases: Factors, modes: Modes) -> jax.Array:
    """Coordinates of x in the eigenbasis: Q^T on each mode."""
    for k, q in enumerate(bases):
        x = modes.multiply(x, q, k, transpose=True)
    return x


def rotate_back(x: jax.Array, bases: Factors, modes: Modes) -> jax.Array:
    """The inverse of `rotate`."""
    for k, q in enumerate(bases):
        x = modes.multiply(x, q, k)
    return x


def factored(eigenvalues: Factors, modes: Modes) -> jax.Array:
    """The second moment in the eigenbasis that the factors' eigenvalues make together.

    A product of eigenvalues, one of each mode, divided by the trace (which is the same for all
    modes) as often as it is there too much, and spread evenly over the axes without a factor.
    """
    trace = jnp.sum(eigenvalues[0], axis=-1, keepdims=True)
    share = 1.0 / jnp.where(trace > 0, trace, 1.0)
    moment = modes.along(jnp.broadcast_to(trace, eigenvalues[0].shape), 0)
    for k, values in enumerate(eigenvalues):
        moment = moment * modes.along(values * share, k)
    inside = {axis for group in modes.groups for axis in group}
    outside = math.prod(modes.shape[a] for a in modes.unbatched if a not in inside)
    return jnp.broadcast_to(moment / outside, modes.shape)


def _unit_trace(factor: jax.Array) -> jax.Array:
    """The factor divided by its trace, so that no product under- or overflows; zero stays zero."""
    trace = jnp.trace(factor)
    return factor / jnp.where(trace == 0, 1.0, trace)


def _fresh(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors in order of falling eigenvalue. No second moment is in that order yet."""
    del basis
    q = jnp.linalg.eigh(_unit_trace(factor))[1][:, ::-1]
    return q, jnp.arange(q.shape[0], dtype=jnp.int32)


def _warm(factor: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of orthogonal iteration, columns sorted by their Rayleigh quotients.

    Adding a multiple of Q to L Q shifts all eigenvalues and changes no eigenvector. With the
    rounding error of the product as its size, directions that no gradient has visited stay
    where they are instead of turning at random at every refresh, and L = 0 keeps Q.
    """
    image = jnp.matmul(_unit_trace(factor), basis, precision="highest") + _ROUNDING * basis
    order = jnp.argsort(-jnp.sum(basis * image, axis=0)).astype(jnp.int32)
    return jnp.linalg.qr(image[:, order])[0], order


def _quotients(factor: jax.Array, basis: jax.Array) -> jax.Array:
    """The eigenvalues that go with the columns of a basis."""
    return jnp.maximum(
        jnp.sum(basis * jnp.matmul(factor, basis, precision="highest"), axis=-2), 0.0
    )


def _refresh(
    method: Callable,
    factors: Leaves,
    bases: Leaves,
    modes: Sequence[Modes],
    moments: tuple[Any, ...],
    eigenvalues: Leaves,
    unbiased: jax.Array,
) -> tuple[Leaves, tuple[Any, ...], Leaves]:
    """Applies `method` to every factor and carries the second moments along.

    Factors of equal size share one compiled loop. They are not batched: on CPU a batched
    decomposition waits for workers of the pool that it runs on itself, and a few of them at
    once (three sizes, or eight simulated devices) wait for ever (jaxlib 0.10, ParallelBatchMap).
    """
    places = [(i, k) for i, leaf in enumerate(factors) for k in range(len(leaf))]
    by_size: dict[int, list[tuple[int, int]]] = {}
    for i, k in places:
        by_size.setdefault(factors[i][k].shape[-1], []).append((i, k))
    new = {}
    for d, same in by_size.items():
        stacked = [
            jnp.concatenate([tree[i][k].reshape(-1, d, d) for i, k in same])
            for tree in (factors, bases)
        ]
        q, order = jax.lax.map(lambda pair: method(*pair), tuple(stacked))
        at = 0
        for i, k in same:
            batch = factors[i][k].shape[:-2]
            count = math.prod(batch)
            new[i, k] = q[at : at + count].reshape(*batch, d, d), order[at : at + count]
            at += count
    bases = tuple(tuple(new[i, k][0] for k in range(len(leaf))) for i, leaf in enumerate(factors))
    if any(eigenvalues):
        values = tuple(
            tuple(_quotients(f / unbiased, q) for f, q in zip(*leaf, strict=True))
            for leaf in zip(factors, bases, strict=True)
        )
        return bases, moments, values
    # Entry j of a mode is the moment along column j: what moves a column moves its moment.
    carried = list(moments)
    for i, k in places:
        order = new[i, k][1]
        selection = jax.nn.one_hot(order, order.shape[-1], dtype=jnp.float32)
        carried[i] = modes[i].multiply(carried[i], selection, k, precision="highest")
    return bases, tuple(carried), eigenvalues


def refresh(
    how: jax.Array,
    factors: Leaves,
    bases: Leaves,
    modes: Sequence[Modes],
    moments: tuple[Any, ...],
    eigenvalues: Leaves,
    unbiased: jax.Array,
) -> tuple[Leaves, tuple[Any, ...], Leaves]:
    """New (bases, moments, eigenvalues): how = 0 keeps them, 1 refines the bases, 2 starts afresh.

    `moments` holds an array per leaf in the order of its basis; or `eigenvalues` holds those of
    every factor, [*batch, d], and is read off at each refresh. `unbiased` is what the factors'
    averages have gathered of their weights. One conditional holds all of it.
    """
    if not any(factors):
        return bases, moments, eigenvalues
    return jax.lax.switch(
        how,
        [
            lambda f, q, v, e, u: (q, v, e),
            lambda f, q, v, e, u: _refresh(_warm, f, q, modes, v, e, u),
            lambda f, q, v, e, u: _refresh(_fresh, f, q, modes, v, e, u),
        ],
        factors,
        bases,
        moments,
        eigenvalues,
        unbiased,
    )
