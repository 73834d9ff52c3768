"""Any direction with the singular values of its matrices levelled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.precondition.shared.leaves import check_floating, f32
from fgo_jax.precondition.shared.matrix_view import (
    MUON,
    DimensionNumbers,
    newton_schulz,
    views,
)


def orthogonalise(
    consistent_rms: jax.typing.ArrayLike | None = None,
    *,
    weight_dimension_numbers: DimensionNumbers = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Levels the singular values of each matrix of the updates before it.

    It is not a direction itself: put it after one and before the learning rate. For a matrix
    :math:`X = U S V^T` the update is about :math:`U V^T`, from five Newton-Schulz steps with
    Muon's coefficients (singular values between 0.7 and 1.2). Behind
    ``optax.ema(0.95, debias=False)`` it is Muon without Nesterov's look-ahead. After Adam
    in an eigenbasis, as `leading` in the example, it is the direction of a public training
    record.

    Other leaves pass unchanged. A matrix whose entries, or their squares, are not finite gets a
    zero update.

    Args:
      consistent_rms: None for singular values near one. A number multiplies an m x n matrix by
        ``consistent_rms * sqrt(max(m, n))``; at 0.2 one learning rate serves matrices and leaves
        with updates of Adam's size.
      weight_dimension_numbers: which axes form matrices, as in :func:`fgo_jax.scale_by_fismo`.
        Give embeddings and the last layer None, as Muon does.

    Returns:
      A gradient transformation without a state. ``fgo.precondition.chain`` keeps the metric of the
      direction.

    Raises:
      ValueError: for a number that is not positive, for axes that a leaf does not have, and for a
        matrix that is complex or not floating-point.

    >>> import jax.numpy as jnp
    >>> levelled = orthogonalise()
    >>> updates, _ = levelled.update(jnp.diag(jnp.array([8.0, 1.0])), levelled.init(None))
    >>> [0.6 < float(s) < 1.3 for s in jnp.diag(updates)]
    [True, True]
    >>> import fgo_jax as fgo
    >>> leading = fgo.precondition.chain(fgo.scale_by_kronecker_fisher(), orthogonalise(0.2))

    Source: Jordan et al., Muon, 2024, for the iteration. The order, SOAP's direction and then the
    iteration, is from the public record of modded-nanogpt (track 3). Its gain there has been
    measured only there; ``benchmarks/README.md`` has results on two small tasks.
    """
    if consistent_rms is not None:
        _checks.positive("consistent_rms", consistent_rms)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        out = list(leaves)
        for i, view in enumerate(views(weight_dimension_numbers, updates)):
            if view is None:
                continue
            check_floating("orthogonalise", [leaves[i]])
            x = jnp.asarray(leaves[i], jnp.float32)
            finite = jnp.isfinite(view.reduce(jnp.sum, jnp.square(x)))
            largest = view.reduce(jnp.max, jnp.abs(x))
            x = x / jnp.where(finite & (largest > 0), largest, 1.0)  # no size is too small
            u = newton_schulz(jnp.where(finite, x, 0.0), view, MUON, 1e-8)
            if consistent_rms is not None:
                u = u * (f32(consistent_rms) * max(view.dims) ** 0.5)
            # An elementwise function of the leaf is sharded like it.
            u = jnp.where(finite & jnp.isfinite(leaves[i]), u, 0.0)
            out[i] = u.astype(jnp.result_type(leaves[i]))
        return treedef.unflatten(out), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), compiled_once(update)
    )
