"""Kronecker factors of a gradient and the orthogonal bases that diagonalise them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import core

# What one rounding of a float32 loses, relative to the largest entry.
_ROUNDING = float(jnp.finfo(jnp.float32).eps)


def start(x, axes):
    """Zero factors and identity bases of a leaf, replicated on the mesh that it lies on."""
    sharding = None if isinstance(x, core.Tracer) else getattr(x, "sharding", None)
    device = None
    if isinstance(sharding, jax.sharding.NamedSharding):
        device = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    dims = [x.shape[axis] for axis in axes]
    return (
        tuple(jnp.zeros((d, d), jnp.float32, device=device) for d in dims),
        tuple(jnp.eye(d, dtype=jnp.float32, device=device) for d in dims),
    )


def factored_axes(shape, max_dim, vector_factors):
    """Axes of a leaf that have a factor of their own.

    Axes of length one are invisible: (1, d) and (d, 1) count as vectors.
    """
    if math.prod(shape) == 0:
        return ()
    long = [axis for axis, dim in enumerate(shape) if dim > 1]
    if len(long) == 1 and not vector_factors:
        return ()
    return tuple(axis for axis in long if shape[axis] <= max_dim)


def _on_mesh(x, axes):
    """The sharding of x with its axes in the order `axes`; None in it stands for a replicated one.

    A mesh with explicit axes, the default of `jax.make_mesh`, wants to be told how the result of
    a contraction or a gather is sharded. Elsewhere None: the partitioner decides.
    """
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return None
    names = tuple(sharding.spec) + (None,) * (x.ndim - len(sharding.spec))
    spec = jax.sharding.PartitionSpec(*(None if a is None else names[a] for a in axes))
    return jax.sharding.NamedSharding(sharding.mesh, spec)


def replicate_like(bases, x):
    """The bases as replicated values on the mesh of x, where that mesh has explicit axes."""
    sharding = _on_mesh(x, ())
    return bases if sharding is None else tuple(jax.sharding.reshard(q, sharding) for q in bases)


def outer_product(x, axis):
    """X_(axis) X_(axis)^T of the mode unfolding, contracted in place: no axis is reshaped."""
    others = [a for a in range(x.ndim) if a != axis]
    return jnp.tensordot(
        x,
        x,
        axes=(others, others),
        precision="highest",
        out_sharding=_on_mesh(x, (None, None)),
    )


def _along(x, q, axis, side):
    """Contracts `axis` of x with index `side` of the square matrix q. The sharding stays."""
    if axis == 0:
        out_sharding = _on_mesh(x, range(x.ndim))
        return jnp.tensordot(q, x, axes=((side,), (0,)), out_sharding=out_sharding)
    order = (*(a for a in range(x.ndim) if a != axis), axis)
    y = jnp.tensordot(x, q, axes=((axis,), (side,)), out_sharding=_on_mesh(x, order))
    return jnp.moveaxis(y, -1, axis)


def _permute(x, order, axis):
    where = (slice(None),) * axis + (order,)
    return x.at[where].get(out_sharding=_on_mesh(x, range(x.ndim)))


def rotate(x, bases, axes):
    """Coordinates of x in the eigenbasis: Q^T on each factored axis."""
    for q, axis in zip(bases, axes, strict=True):
        x = _along(x, q, axis, 0)
    return x


def rotate_back(x, bases, axes):
    """The inverse of `rotate`."""
    for q, axis in zip(bases, axes, strict=True):
        x = _along(x, q, axis, 1)
    return x


def _unit_trace(factor):
    """The factor divided by its trace, so that no product under- or overflows; zero stays zero."""
    trace = jnp.trace(factor)
    return factor / jnp.where(trace == 0, 1.0, trace)


def _fresh(factor, basis):
    """Eigenvectors in order of falling eigenvalue. No second moment is in that order yet."""
    del basis
    q = jnp.linalg.eigh(_unit_trace(factor))[1][:, ::-1]
    return q, jnp.arange(q.shape[0], dtype=jnp.int32)


def _warm(factor, basis):
    """One step of orthogonal iteration, columns sorted by their Rayleigh quotients.

    Adding a multiple of Q to L Q shifts all eigenvalues and changes no eigenvector. With the
    rounding error of the product as its size, directions that no gradient has visited stay
    where they are instead of turning at random at every refresh, and L = 0 keeps Q.
    """
    image = jnp.matmul(_unit_trace(factor), basis, precision="highest") + _ROUNDING * basis
    order = jnp.argsort(-jnp.sum(basis * image, axis=0)).astype(jnp.int32)
    return jnp.linalg.qr(image[:, order])[0], order


def _refresh(method, factors, bases, axes, moments):
    """Applies `method` to every factor and carries the second moments along.

    Factors of equal size share one compiled loop. They are not batched: on CPU a batched
    decomposition waits for workers of the pool that it runs on itself, and a few of them at
    once (three sizes, or eight simulated devices) wait for ever (jaxlib 0.10, ParallelBatchMap).
    """
    places = [(i, k) for i, leaf in enumerate(factors) for k in range(len(leaf))]
    by_size = {}
    for i, k in places:
        by_size.setdefault(factors[i][k].shape[0], []).append((i, k))
    new = {}
    for same in by_size.values():
        stacked = [jnp.stack([tree[i][k] for i, k in same]) for tree in (factors, bases)]
        result = jax.lax.map(lambda pair: method(*pair), tuple(stacked))
        for place, q, order in zip(same, *result, strict=True):
            new[place] = q, order
    # Entry j of an axis is the moment along column j: what moves a column moves its moment.
    moments = list(moments)
    for i, k in places:
        moments[i] = _permute(moments[i], new[i, k][1], axes[i][k])
    bases = tuple(tuple(new[i, k][0] for k in range(len(leaf))) for i, leaf in enumerate(factors))
    return bases, tuple(moments)


def refresh(how, factors, bases, axes, moments):
    """New (bases, moments): how = 0 keeps them, 1 refines the bases, 2 computes them afresh.

    `factors`, `bases` and `axes` are tuples over leaves of tuples over factored axes. `moments`
    is a tuple over leaves. One conditional holds all of it.
    """
    if not any(factors):
        return bases, moments
    return jax.lax.switch(
        how,
        [
            lambda f, q, v: (q, v),
            lambda f, q, v: _refresh(_warm, f, q, axes, v),
            lambda f, q, v: _refresh(_fresh, f, q, axes, v),
        ],
        factors,
        bases,
        moments,
    )
