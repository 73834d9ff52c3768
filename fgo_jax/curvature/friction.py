"""Friction: the curvature along given directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.trees import vdot


def friction(matvec: Callable[[Any], Any], directions: Any, *, stacked: bool = False) -> jax.Array:
    r"""The quadratic form of a curvature operator along one direction or several.

    .. math:: \varphi(\theta; u) = u^T F(\theta)\, u

    The direction keeps its length. For an update it is twice the quadratic part of that
    step's change of the loss; for a unit vector it is the curvature. Summed over an
    orthonormal basis it is the trace. Each direction takes one product, one at a time.

    Args:
      matvec: F, a symmetric map of a pytree to one of the same shapes, such as
        ``fgo.curvature.ggn(...)(params, batch)``.
      directions: u, a pytree shaped like the parameters; with ``stacked``, k of them in
        leaves [k, *leaf.shape].
      stacked: whether the leaves have that leading axis. Shapes alone cannot tell, because
        they may fit both ways.

    Returns:
      [] or [k], float32, in the unit of the operator times that of the direction squared.

    Raises:
      ValueError: for ``stacked`` directions whose leaves do not share their leading axis.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> matvec = lambda v: jnp.array([1.0, 3.0]) * v
      >>> fgo.curvature.friction(matvec, jnp.ones(2)).tolist()
      4.0
      >>> fgo.curvature.friction(matvec, jnp.eye(2), stacked=True).tolist()
      [1.0, 3.0]

    Source: Friction-Guided Optimization (2026); Martens (2020), section 5, on it as the
    squared length of a step in the Fisher metric.
    """

    def along(direction: Any) -> jax.Array:
        direction = optax.tree.cast(direction, jnp.float32)
        return vdot(direction, optax.tree.cast(matvec(direction), jnp.float32))

    if not stacked:
        return along(directions)
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(directions)}
    if len(counts) != 1 or counts == {()}:
        shapes = jax.tree.map(jnp.shape, directions)
        raise ValueError(
            f"stacked directions need one leading axis [k, ...] in common, got {shapes}: stack "
            "the trees with jax.tree.map(lambda *u: jnp.stack(u), *trees)."
        )
    return jax.lax.map(along, directions)
