"""Muon in a mild metric: Mousse, as a gradient transformation."""

from __future__ import annotations

import jax

from fgo_jax import _checks
from fgo_jax.precondition.fismo.between_factors import Rule, between_factors
from fgo_jax.precondition.shared.matrix_view import MUON, DimensionNumbers
from fgo_jax.precondition.shared.preconditioner import Preconditioner


def scale_by_mousse(
    beta: jax.typing.ArrayLike = 0.95,
    factor_decay: jax.typing.ArrayLike = 0.95,
    damping: jax.typing.ArrayLike = 1e-2,
    *,
    power: float = 0.125,
    refresh_every: jax.typing.ArrayLike = 10,
    block_size: int = 1024,
    consistent_rms: jax.typing.ArrayLike | None = None,
    weight_dimension_numbers: DimensionNumbers = None,
) -> Preconditioner:
    r"""Mousse: Muon's orthogonalised momentum, whitened a little before and after.

    It is a direction: no learning rate, no minus sign.

    For an m x n matrix with gradient G, H = G / rms(G), and from P = Q = I and M = 0 on,

        S = decay P + (1 - decay) (H H^T / n + damping I),   P <- m S / tr S,
        T = decay Q + (1 - decay) (H^T H / m + damping I),   Q <- n T / tr T,
        M <- beta M + (1 - beta) G,
        O = polar(P^-a M Q^-a),   U = P^-a O Q^-a,   update = U ||O|| / ||U||,

    with a the power, an eighth. :func:`fgo_jax.scale_by_fismo` shares the whitening, and has a
    half in the place of an eighth. It whitens each gradient before the momentum, and each factor's
    input by the other side. Here the sides are independent, and the update has the size of
    Muon's. At power 0, or with P = Q = I (`factor_decay=1`), it is Muon.

    Everything else is as in :func:`fgo_jax.scale_by_fismo`: refreshes of the roots, leaves that
    follow Adam, axes, gradients that are not finite, sharding.

    Args:
      beta: decay rate of the momentum, in [0, 1).
      factor_decay: decay rate of the factors, in [0, 1]; 1 keeps them at the identity.
      damping: weight of the identity in each factor, beside a mean diagonal of 1. It bounds
        the gain of a direction that no gradient has visited at about damping^(-2 a),
        before the update is rescaled.
      power: a, a Python number in [0, 1].
      refresh_every: steps from one refresh of the inverse roots to the next.
      block_size: longest side of a block of a factor; 1 turns all factors off.
      consistent_rms: as in :func:`fgo_jax.scale_by_fismo`; 0.2 for one learning rate for all
        leaves.
      weight_dimension_numbers: as in :func:`fgo_jax.scale_by_fismo`.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`, with metric and state as those of
      :func:`fgo_jax.scale_by_fismo`.

    Raises:
      ValueError: as :func:`fgo_jax.scale_by_fismo`, and for a power outside of [0, 1].

    >>> import jax.numpy as jnp, optax
    >>> transform = scale_by_mousse(consistent_rms=0.2)
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> state = transform.init(params)
    >>> updates, state = transform.update(params, state)
    >>> params = optax.apply_updates(params, optax.tree.scale(-1e-3, updates))

    Source: Mousse, 2026 (arXiv 2603.09697), for the update, the power, the traces and the refresh
    at every tenth step. The division by rms(G), the damping and the identity as the first factor
    are this library's: the paper averages G G^T and normalises the average alone.
    """
    _checks.static("power", power)
    _checks.unit("power", power)
    rule = Rule(
        name="scale_by_mousse",
        power=power,
        coupled=False,
        unit_gradients=True,
        beta=beta,
        factor_decay=factor_decay,
        damping=damping,
        refresh_every=refresh_every,
        coefficients=MUON,
        eps=1e-8,
        block_size=block_size,
        adam_b1=0.9,
        adam_b2=0.999,
        consistent_rms=consistent_rms,
        weight_dimension_numbers=weight_dimension_numbers,
    )
    return between_factors(rule)
