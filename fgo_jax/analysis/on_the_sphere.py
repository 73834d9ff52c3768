"""How scale-invariant parameters rotate; their length sets the speed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fgo_jax.analysis.symmetries import Symmetries
from fgo_jax.linalg.trees import leaf_names, sum_squares, vdot


def symmetry_telemetry(
    found: Symmetries,
    params: Any,
    updates: Any,
    grads: Any,
    *,
    learning_rate: Any,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
) -> dict[str, jax.Array]:
    r"""Numbers of one step for each scale-invariant part; pure, for use inside a compiled step.

    Only the direction of such a part matters, and its length divides the steps. With
    :math:`\theta` the part, u its actual update and :math:`\eta, \lambda, \beta` the learning
    rate, weight decay and momentum, for a part called PART (its paths joined by "+"):

    - ``norm/PART``: :math:`\|\theta\|`.
    - ``effective_rate/PART``: :math:`\eta / \|\theta\|^2`, the learning rate on the sphere.
    - ``rotation/PART``: angle between :math:`\theta` and :math:`\theta + u`, in radians.
    - ``inward/PART`` and ``outward/PART``: :math:`2 \langle\theta, u\rangle` and
      :math:`\|u\|^2`, whose sum is the change of :math:`\|\theta\|^2`.

    These hold for any update. The next two are predictions for SGD with momentum and coupled
    weight decay, :math:`v \leftarrow \beta v + g + \lambda\theta, \theta \leftarrow \theta -
    \eta v`, if gradients are independent noise at each step:

    - ``equilibrium_rotation/PART``: :math:`\sqrt{2\eta\lambda/(1+\beta)}`.
    - ``pull/PART``: :math:`\|\theta\|_\infty^4 / \|\theta\|^4` with the length at equilibrium,
      :math:`\|\theta\|_\infty^4 = \eta L / (\lambda (1-\beta) (2 - \lambda\eta/(1+\beta)))` and
      :math:`L = \|\theta\|^2 \|g\|^2` of this step. Its mean over steps is 1 at equilibrium;
      above 1 the part still grows. Correlated gradients keep the length above the
      prediction, by up to :math:`(1+\beta)/(1-\beta)` in the fourth power. So a low mean of
      a part of constant length shows that its gradients agree.

    Args:
      found: from :func:`fgo_jax.analysis.symmetries`.
      params: the parameters before the step.
      updates: what is added to them.
      grads: the gradients.
      learning_rate: :math:`\eta`.
      weight_decay: :math:`\lambda`; without it there is no equilibrium and no prediction.
      momentum: :math:`\beta`.

    Returns:
      A flat dict of float32 scalars; empty without scale-invariant parts.

    Raises:
      KeyError: where ``found`` names leaves that the parameters do not have.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> found = fgo.analysis.Symmetries((("w",),), (), (), (), {})
      >>> told = fgo.analysis.symmetry_telemetry(
      ...     found, {"w": jnp.array([2.0, 0.0])}, {"w": jnp.array([0.0, 2.0])},
      ...     {"w": jnp.array([0.0, -1.0])}, learning_rate=2.0,
      ... )
      >>> round(float(told["rotation/w"]), 4), float(told["effective_rate/w"])
      (0.7854, 0.5)

    Source: arXiv 2105.02716, with the laws of arXiv 2012.04728. The discrete equilibrium and
    the factor for persistent gradients are derived here; a simulation in the tests agrees.
    """
    trees = (_by_path(params), _by_path(updates), _by_path(grads))
    numbers = {}
    for part in found.scale:
        theta, u, g = ([tree[path].astype(jnp.float32) for path in part] for tree in trees)
        square, along, step = sum_squares(theta), vdot(theta, u), sum_squares(u)
        # The length of u across theta, without the difference of two large numbers.
        share = along / square
        across = jnp.sqrt(sum_squares([y - share * x for x, y in zip(theta, u, strict=True)]))
        told = {
            "norm": jnp.sqrt(square),
            "effective_rate": learning_rate / square,
            "rotation": jnp.arctan2(across, jnp.sqrt(square) * (1 + share)),
            "inward": 2 * along,
            "outward": step,
        }
        decay = jnp.asarray(weight_decay, jnp.float32)
        known = decay > 0
        kept = learning_rate * decay / (1 + momentum)
        told["equilibrium_rotation"] = jnp.where(known, jnp.sqrt(2 * kept), jnp.nan)
        rest = jnp.where(known, decay, 1.0) * (1 - momentum) * (2 - kept)
        told["pull"] = jnp.where(known, learning_rate * sum_squares(g) / square / rest, jnp.nan)
        numbers |= {f"{name}/{'+'.join(part)}": x.astype(jnp.float32) for name, x in told.items()}
    return numbers


def _by_path(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
