"""Where the state of an optimizer lies on a mesh, known before any of it is made."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def state_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any = None
) -> Any:
    """The shardings of an optimizer's state, from those of the parameters.

    It takes no memory: the state is made in the abstract. Moments and averages lie like their
    parameters, factors and bases like the blocks that they belong to, counters and sketches on
    every device. Use it

    - to make the state of a large model in place: `jax.jit(tx.init, out_shardings=...)`. A plain
      `jax.jit(tx.init)` puts all of it on every device, unless the mesh has explicit axes;
    - as `out_shardings` of a compiled training step;
    - to restore a checkpoint on another mesh, with the shapes of `jax.eval_shape(tx.init, params)`.

    `tx.init(params)`, not compiled, puts a state into these very places.

    Where every device has all parameters, ``shardings`` that split them split the state alone
    (ZeRO, stage 1). Each device then updates its part, and collects the updates of the others.

    Args:
      optimizer: any gradient transformation of optax's kind.
      params: the parameters, or their shapes as `jax.ShapeDtypeStruct`.
      shardings: a `jax.sharding.NamedSharding` for all of them, or a tree (or a prefix of one) with
        one for each. None takes those of ``params`` itself.

    Returns:
      A tree of `jax.sharding.NamedSharding` in the shape of the state, on the mesh of the
      parameters.

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
    if shardings is None:
        shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), params)
    homes = jax.tree.broadcast(shardings, params, is_leaf=lambda x: x is None)
    mesh = _mesh_of(homes)
    # Where all axes are explicit, the type of an array says where it lies, also in the abstract.
    typed = mesh.update(axis_types=(AxisType.Explicit,) * len(mesh.axis_names))
    shapes = jax.eval_shape(lambda params: params, params)
    placed = jax.tree.map(
        lambda x, home: x.update(sharding=NamedSharding(typed, home.spec)), shapes, homes
    )
    state = jax.eval_shape(optimizer.init, placed)
    return jax.tree.map(lambda x: _on(mesh, x.sharding), state)


def _on(mesh: Any, found: Any) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec() if found is None else found.spec)


def _mesh_of(homes: Any) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(homes, is_leaf=lambda x: x is None)
    for path, home in leaves:
        if not isinstance(home, NamedSharding):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "the parameters"
            raise ValueError(
                f"{name} has no NamedSharding, but {home}: put the parameters on a mesh, or pass "
                "their shardings."
            )
    meshes = {home.mesh for _, home in leaves}
    if len(meshes) != 1:
        raise ValueError(f"the parameters lie on {len(meshes)} meshes, not on one.")
    return meshes.pop()
