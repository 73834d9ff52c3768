"""Shardings that a mesh with explicit axes, the default of `jax.make_mesh`, has to be told.

On other meshes the partitioner decides: the first two functions return None there, and `replicate`
returns its tree unchanged.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import core


def like(x: jax.Array) -> Any:
    """The sharding of x, for the result of a contraction."""
    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.explicit_axes else None


def replicated(x: jax.Array, rank: int) -> Any:
    """No sharding at all, on the mesh of x."""
    mesh = jax.typeof(x).sharding.mesh
    if not mesh.explicit_axes:
        return None
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*(None,) * rank))


def replicate(tree: Any, x: jax.Array) -> Any:
    """The tree replicated on the mesh of x."""
    if replicated(x, 0) is None:
        return tree
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, replicated(x, leaf.ndim)), tree)


def device_of_new(x: Any) -> Any:
    """A `device=` for arrays that belong to the leaf x of an `init`, replicated on its mesh."""
    sharding = None if isinstance(x, core.Tracer) else getattr(x, "sharding", None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return None
