"""Shardings that a mesh with explicit axes, the default of `jax.make_mesh`, has to be told.

On other meshes the partitioner decides: functions that give a sharding return None there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from fgo_jax.linalg.devices import as_varying, varying_axes


def like(x: jax.Array) -> Any:
    """The sharding of x, for the result of a contraction."""
    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.explicit_axes else None


def splits(x: jax.Array, axis: int) -> bool:
    """Whether this axis is known to be split over devices."""
    sharding = like(x)
    return sharding is not None and sharding.spec[axis] is not None


def is_split(x: jax.Array) -> bool:
    """Whether any axis is known to be split over devices."""
    return any(splits(x, axis) for axis in range(jnp.ndim(x)))


def placed_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """x sharded like the other array, on explicit axes, except for axes of length one."""
    sharding = like(other)
    if sharding is None:
        return x
    spec = [name if n > 1 else None for name, n in zip(sharding.spec, x.shape, strict=True)]
    return jax.sharding.reshard(x, named(sharding.mesh, spec))


def rows_like(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """x, of rows of the leaf's shape along a first axis, each row split like the leaf."""
    sharding = like(leaf)
    if sharding is None:
        return x
    return jax.sharding.reshard(x, named(sharding.mesh, (None, *sharding.spec)))


def elementwise_rows(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """x, of rows of the leaf's shape, as an elementwise function of the leaf: sharded like it.

    For use in `jax.jit` on automatic axes, where nothing else fixes the sharding.
    """
    return jnp.where((leaf == leaf)[None], x, 0.0)  # always true


def examples(batch: Any, start: Any, size: int) -> Any:
    """The examples from `start` on, along the first axis of every leaf of a batch.

    If they cannot be divided evenly over the devices that share the batch, all devices get them.
    """

    def part(leaf: jax.Array) -> jax.Array:
        sharding = like(leaf)
        if sharding is not None and size % number_of_parts(sharding.mesh, sharding.spec[0]):
            whole = named(sharding.mesh, (None, *sharding.spec[1:]))
            leaf = jax.sharding.reshard(leaf, whole)
        if isinstance(start, int):
            return jax.lax.slice_in_dim(leaf, start, start + size)
        return jax.lax.dynamic_slice_in_dim(leaf, start, size)

    return jax.tree.map(lambda leaf: part(jnp.asarray(leaf)), batch)


def made(make: Callable[..., jax.Array], shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
    """make(shape, dtype) for an `init`, sharded as `device`: each device makes its own part."""
    if device is None:
        return make(shape, dtype)
    if isinstance(device.mesh, jax.sharding.AbstractMesh):
        return jax.sharding.reshard(make(shape, dtype), device)
    return _maker(make, shape, dtype, device)()


@functools.lru_cache
def _maker(
    make: Callable[..., jax.Array], shape: tuple[int, ...], dtype: Any, device: Any
) -> Callable[[], jax.Array]:
    """Compiled once for all arrays that are alike: an `init` has as many as there are leaves."""
    return jax.jit(lambda: make(shape, dtype), out_shardings=device)


def without(x: jax.Array, axis: int) -> Any:
    """The sharding of x once this axis has been summed over and a new last axis has taken over."""
    sharding = like(x)
    if sharding is None:
        return None
    names = [name for a, name in enumerate(sharding.spec) if a != axis]
    return named(sharding.mesh, (*names, None))


def replicated(x: jax.Array, rank: int) -> Any:
    """No sharding at all, on the mesh of x."""
    return on_batch(x, (), rank)


def replicate(tree: Any, x: jax.Array) -> Any:
    """The tree replicated on the mesh of x."""
    return tree if like(x) is None else put_on_batch(tree, x, ())


def everywhere(x: jax.Array) -> jax.Array:
    """A small array, or a sum, as a copy on every device."""
    if number_of_devices(x) == 1 or like(x) is not None:
        return replicate(x, x)
    kind = jax.typeof(x).sharding.mesh
    return jax.lax.with_sharding_constraint(x, named(kind, ()))


def on_batch(x: jax.Array, batch: Sequence[int], rank: int) -> Any:
    """The sharding of arrays of this rank that begin with some axes of x, split like these."""
    sharding = like(x)
    if sharding is None:
        return None
    names = [sharding.spec[axis] for axis in batch]
    return named(sharding.mesh, (*names, *(None,) * (rank - len(batch))))


def put_on_batch(tree: Any, x: jax.Array, batch: Sequence[int]) -> Any:
    """The tree's arrays, which begin with some axes of x, split like these and no further.

    Where the partitioner decides, it may split these axes and no others.
    """
    if like(x) is not None:
        return jax.tree.map(
            lambda leaf: jax.sharding.reshard(leaf, on_batch(x, batch, leaf.ndim)), tree
        )
    if number_of_devices(x) == 1:
        return tree
    kind = jax.typeof(x).sharding.mesh
    free = (jax.sharding.PartitionSpec.UNCONSTRAINED,) * len(batch)

    def pin(leaf: jax.Array) -> jax.Array:
        spec = named(kind, (*free, *(None,) * (leaf.ndim - len(batch))))
        return jax.lax.with_sharding_constraint(leaf, spec)

    return jax.tree.map(pin, tree)


def reshaped(x: jax.Array, batch: int, shape: Sequence[int]) -> jax.Array:
    """x with this shape after its first axes; only those stay split."""
    sharding = like(x)
    shape = (*x.shape[:batch], *shape)
    if sharding is None:
        return x.reshape(shape)
    spec = (*sharding.spec[:batch], *(None,) * (len(shape) - batch))
    return jax.lax.reshape(x, shape, out_sharding=named(sharding.mesh, spec))


def number_of_parts(mesh: Any, name: Any) -> int:
    """Into how many parts an entry of a spec, of one name, several or None, splits an axis."""
    return math.prod(mesh.shape[one] for one in each_name(name))


def each_name(name: Any) -> tuple[str, ...]:
    """The axes of the mesh in an entry of a spec."""
    return () if name is None else (name,) if isinstance(name, str) else tuple(name)


def named(mesh: Any, spec: Sequence[Any]) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


def number_of_devices(x: jax.Array) -> int:
    """Those that the array's program is split over; 1 under `jax.shard_map`, on any mesh."""
    kind = jax.typeof(x).sharding.mesh
    return 1 if kind.manual_axes else math.prod(kind.shape.values())


def on_mesh(init: Callable[..., Any]) -> Callable[..., Any]:
    """An `init` whose arrays all lie on the mesh of the parameters.

    Arrays that belong to no parameter, such as counters, are replicated. An update returns its
    state on the mesh. If the first state lay elsewhere, the second update would compile again.
    """

    @functools.wraps(init)
    def placed(params: Any) -> Any:
        state = init(params)
        homes = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
        meshes = [home.mesh for home in homes if isinstance(home, jax.sharding.NamedSharding)]
        leaves = jax.tree.leaves((params, state))
        if not meshes or any(isinstance(leaf, core.Tracer) for leaf in leaves):
            # Under `jax.shard_map` each device decides by its own parameters, if they differ.
            return as_varying(state, varying_axes(params))

        def put(x: Any) -> Any:
            there = isinstance(getattr(x, "sharding", None), jax.sharding.NamedSharding)
            if there or not isinstance(x, jax.Array):
                return x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                key = put(jax.random.key_data(x))
                return jax.random.wrap_key_data(key, impl=jax.random.key_impl(x))
            return at_home(np.asarray(x), named(meshes[0], ()))

        return jax.tree.map(put, state)

    return placed


def at_home(values: np.ndarray, home: Any) -> jax.Array:
    """The array with this sharding."""
    # Not `jax.device_put`: with many processes it compares them, and NaN is not NaN.
    return jax.make_array_from_callback(values.shape, home, values.__getitem__)


def filled_like(old: Any, new: jax.Array) -> jax.Array:
    """The new numbers in the shape, dtype and sharding of an old array, inside `jax.jit` too."""
    home = None if isinstance(old, core.Tracer) else getattr(old, "sharding", None)
    # `jnp.full_like` keeps it for a scalar only.
    if not isinstance(home, jax.sharding.NamedSharding):
        return jnp.full_like(old, new)
    return at_home(np.broadcast_to(np.asarray(new, old.dtype), old.shape), home)
