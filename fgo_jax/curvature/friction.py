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

    The direction is taken at its own length: an update gives the friction of that step,
    twice the quadratic part of its change of the loss; a unit vector gives the curvature.
    Summed over an orthonormal basis it is the trace. One product per direction, several
    directions one after the other.

    Args:
      matvec: symmetric map of a pytree to one of the same shapes, such as
        ``fgo.curvature.ggn(...)(params, batch)``.
      directions: u, a pytree shaped like the parameters; with ``stacked``, of leaves
        [k, *leaf.shape] that hold k of them.
      stacked: whether the leaves have that leading axis. It is said and not guessed from
        the shapes, which may fit both ways.

    Returns:
      float32, [] or [k]; in the unit of the operator times that of the direction squared.

    Raises:
      ValueError: for ``stacked`` directions whose leaves do not share their leading axis.

    Example:
      >>> import jax.numpy as jnp
      >>> matvec = lambda v: jnp.array([1.0, 3.0]) * v
      >>> friction(matvec, jnp.ones(2)).tolist()
      4.0
      >>> friction(matvec, jnp.eye(2), stacked=True).tolist()
      [1.0, 3.0]

    Source: the friction of the paper; Martens (2020), section 5, on it as the length of a
    step in the Fisher metric.
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
