"""Where the state of an optimizer lies on a mesh, known before any of it is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def state_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any = None
) -> Any:
    """The shardings of an optimizer's state, from those of the parameters.

    It allocates nothing: `init` is only traced. Averages and Adam's moments are sharded like their
    parameters, factors like their blocks (see :func:`scale_by_kronecker_fisher`). Counters and
    sketches are replicated. Use it

    - to make the state of a large model in place: `jax.jit(tx.init, out_shardings=...)`. A plain
      `jax.jit(tx.init)` puts all of it on every device, unless the mesh has explicit axes;
    - as `out_shardings` of a compiled training step;
    - to restore a checkpoint on another mesh, with the shapes of `jax.eval_shape(tx.init, params)`.

    `tx.init(params)`, not compiled, puts the state into the same places, except for a few
    counters of optax, which stay on one device.

    If the parameters are replicated, ``shardings`` that split them split only the state (ZeRO,
    stage 1). Each device then updates its part, and the updates are gathered.

    Args:
      optimizer: any optax gradient transformation.
      params: the parameters, or their shapes as `jax.ShapeDtypeStruct`.
      shardings: a `jax.sharding.NamedSharding` for all of them, or a tree (or a prefix of one) with
        one for each. None takes those of ``params`` itself.

    Returns:
      A tree of `jax.sharding.NamedSharding` in the shape of the state, on the mesh of the
      parameters, in the devices' default memory.

    Raises:
      ValueError: for a parameter without a `NamedSharding`, for two meshes, and what
        ``optimizer.init`` raises for these parameters.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> import fgo_jax as fgo
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> params = {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32)}
      >>> rows = NamedSharding(mesh, PartitionSpec("data"))
      >>> tx = optax.adam(1e-3)
      >>> homes = fgo.state_shardings(tx, params, rows)
      >>> tuple(homes[0].mu["kernel"].spec), tuple(homes[0].count.spec)
      (('data', None), ())

    Source: this library; Rajbhandari et al., ZeRO, 2019 (arXiv 1910.02054), for its stage 1.
    """
    leaves, treedef = jax.tree.flatten(params)
    if shardings is None:
        homes: list[Any] = [getattr(leaf, "sharding", None) for leaf in leaves]
    else:
        homes = jax.tree.leaves(jax.tree.broadcast(shardings, params))
    mesh = _mesh_of(params, homes)
    # With explicit axes, an array's type has its sharding, even without values.
    typed = mesh.update(axis_types=(AxisType.Explicit,) * len(mesh.axis_names))
    with jax.sharding.use_abstract_mesh(typed.abstract_mesh):
        placed = [
            x.update(sharding=NamedSharding(typed, home.spec))
            for x, home in zip(jax.eval_shape(lambda x: x, leaves), homes, strict=True)
        ]
        state = jax.eval_shape(optimizer.init, treedef.unflatten(placed))
    return jax.tree.map(lambda x: _on(mesh, x.sharding), state)


def _on(mesh: Any, sharding: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec() if sharding is None else sharding.spec)


def _mesh_of(params: Any, homes: Sequence[Any]) -> Any:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, home in zip(paths, homes, strict=True):
        if not isinstance(home, NamedSharding):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the parameter"
            raise ValueError(
                f"{name} has no NamedSharding, but {home}: put the parameters on a mesh, or pass "
                "their shardings."
            )
    meshes = {home.mesh for home in homes}
    if len(meshes) != 1:
        raise ValueError(f"the parameters lie on {len(meshes)} meshes, not on one.")
    return meshes.pop()
