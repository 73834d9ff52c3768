"""Muon between two Kronecker factors, as a gradient transformation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fgo_jax import _checks
from fgo_jax.precondition.fismo.between_factors import Rule, between_factors
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers, newton_schulz_coefficients
from fgo_jax.precondition.shared.preconditioner import Preconditioner


def scale_by_fismo(
    beta: jax.typing.ArrayLike = 0.95,
    factor_decay: jax.typing.ArrayLike = 0.95,
    damping: jax.typing.ArrayLike | None = None,
    *,
    refresh_every: jax.typing.ArrayLike = 10,
    ns_coeffs: Sequence[Any] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    eps: jax.typing.ArrayLike = 1e-8,
    block_size: int = 1024,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.999,
    unit_gradients: bool = False,
    consistent_rms: jax.typing.ArrayLike | None = None,
    weight_dimension_numbers: DimensionNumbers = None,
) -> Preconditioner:
    r"""Muon's orthogonalised momentum, in the metric of two Kronecker factors of the Fisher.

    It is a direction: no learning rate, no minus sign. :func:`fgo_jax.fismo` adds both.

    For a matrix with m rows, n columns and gradient G, from P = Q = I and M = 0 on, with
    X = G Q^-1 G^T / n and Y = G^T P^-1 G / m,

        L = X / max(1, tr(X)/m) + damping tr(P)/m I,   S = decay P + (1 - decay) L,
        R = Y / max(1, tr(Y)/n) + damping tr(Q)/n I,   T = decay Q + (1 - decay) R,
        P <- m S / tr S,   Q <- n T / tr T,
        M <- beta M + (1 - beta) P^-1/2 G Q^-1/2,
        update = P^-1/2 polar(M / (1 - beta^t)) Q^-1/2.

    The update W is steepest descent under the spectral norm of the whitened step P^1/2 W Q^1/2. P
    and Q move at every step. Their inverse roots move at a refresh: at step 1, then every
    `refresh_every` steps. At a refresh R already uses the new P^-1. polar(.) is approximate: Newton
    and Schulz's iteration, an odd polynomial of the singular values.

    Size of the gradients: the published equations do not divide X and Y. A gradient with entries
    far above 1, as of a summed loss, then outweighs the damping and all earlier gradients. The
    division prevents that.
    If the entries of G are far below 1, as those of most networks are, P and Q stay near I and the
    update is near Muon's (in a run on digits their eigenvalues stayed within 0.99 and 1.05).
    `unit_gradients` puts G / rms(G) into L and R. The factors then follow gradients of any
    size, and a constant factor of all gradients cancels. The damping then bounds the update: a
    direction that no gradient has visited is multiplied by up to 1/damping.

    With P = Q = I, that is `factor_decay=1` or `block_size=1`, the update is that of
    `optax.contrib.scale_by_muon(nesterov=False)`, with the same defaults. One difference: a matrix
    of one row or column is a vector here, unless `weight_dimension_numbers` names its axes.

    Leaves that are no matrices (vectors, scalars) follow `optax.scale_by_adam`, as in
    `optax.contrib.muon`. Let embeddings and the last layer do so too: give them None in
    `weight_dimension_numbers`. Kernels of a higher rank are matrices of

        rank 2   [m, n]                  m x n,
        rank 3   [d, heads, head_dim]    d x (heads head_dim): the cut that is closest to a square;
        others   [h, w, c_in, c_out]     (h w c_in) x c_out: the last axis against the rest,

    unless `weight_dimension_numbers` names other axes. The axes that it does not name are a batch
    of matrices, each with its own factors (for stacked, scanned layers, name the other axes).

    A side longer than `block_size` is cut into the fewest equal blocks that fit, and P or Q is
    block diagonal; polar(.) still sees the whole matrix. If they would be shorter than a quarter of
    it, as on a longer side of prime length, it keeps the identity: pad it. A side longer than six
    times the other one is cut too, where it can be.
    Leaves of equal shape whose names differ in numbers alone are computed as one array, so the
    compiled step grows with the kinds of leaves. :func:`fgo_jax.describe` lists the factors.

    A matrix, or another leaf, whose gradient is not finite, or has squares that overflow float32,
    keeps its statistics and gets a zero update.

    Updates and moments are sharded like their leaf, factors like the blocks of their side. Layers
    whose number is a multiple of every mesh axis are dealt out: each device orthogonalises whole
    ones, and only gradients, momenta and updates travel. Orthogonalising other sharded matrices
    takes communication, as in Muon. On a busy CPU set OPENBLAS_NUM_THREADS=1.

    Args:
      beta: decay rate of the momentum, in [0, 1).
      factor_decay: decay rate of the factors, in [0, 1]; 1 keeps them at the identity.
      damping: weight of the identity in each factor, relative to the mean of the factor's
        diagonal, which is 1. It is compared with squared gradients, or with 1 if `unit_gradients`.
        None is 1e-2, and 1 with `unit_gradients`.
      refresh_every: steps from one refresh of the inverse roots to the next.
      ns_coeffs: (a, b, c) of X <- a X + b A X + c A^2 X, A = X X^T; or such a triple for each
        step, of which the last `ns_steps` are used.
      ns_steps: steps of the iteration.
      eps: added to the norm by which M is divided before the iteration; also Adam's epsilon.
      block_size: longest side of a block of a factor; 1 turns all factors off.
      adam_b1, adam_b2: decay rates for the leaves that are no matrices.
      unit_gradients: whether the factors see gradients of root mean square 1.
      consistent_rms: None for the update above, of root mean square about 1/sqrt(max(m, n)). A
        number multiplies it by consistent_rms * sqrt(max(m, n)), as in `optax.contrib.muon`. At
        0.2 one learning rate serves matrices and the leaves that follow Adam.
      weight_dimension_numbers: `optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`
        of rows and columns: one for all leaves; or a tree of them shaped like the parameters (or a
        prefix of one), with None for leaves that follow Adam; or a function from the parameters
        to it. None for the table above.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`. For matrices its `metric` is
      P^-1/2 G Q^-1/2 / sqrt(s), where s is the root mean square of the singular values of
      M / (1 - beta^t), which polar(.) divides out; other leaves are divided by the square root of
      Adam's denominator. It gives float32, and before a leaf's first gradient the identity. The
      state takes 4 bytes per parameter of a matrix, 8 of other leaves, and 8 d^2 bytes for each
      block of side d: 8 (m/n + n/m) bytes per parameter of an m x n matrix with one block a side.

    Raises:
      ValueError: for an argument out of its range, for a traced one that shapes the computation,
        for a leaf that is complex or not floating-point, and for axes that a leaf does not have.

    >>> import jax.numpy as jnp, optax
    >>> transform = scale_by_fismo(consistent_rms=0.2)
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> state = transform.init(params)
    >>> [p.shape for p in state.factors[1]]
    [(3, 3), (2, 2)]
    >>> updates, state = transform.update(params, state)
    >>> params = optax.apply_updates(params, optax.tree.scale(-1e-3, updates))

    Sources: FISMO, 2026 (arXiv 2601.21750); Jordan et al., Muon, 2024, for the iteration; Liu et
    al., 2025 (arXiv 2502.16982), for the consistent root mean square.
    """
    _checks.static("unit_gradients", unit_gradients)
    if damping is None:
        damping = 1.0 if unit_gradients else 1e-2
    rule = Rule(
        name="scale_by_fismo",
        power=0.5,
        coupled=True,
        unit_gradients=unit_gradients,
        beta=beta,
        factor_decay=factor_decay,
        damping=damping,
        refresh_every=refresh_every,
        coefficients=newton_schulz_coefficients(ns_coeffs, ns_steps),
        eps=eps,
        block_size=block_size,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        consistent_rms=consistent_rms,
        weight_dimension_numbers=weight_dimension_numbers,
    )
    return between_factors(rule)
