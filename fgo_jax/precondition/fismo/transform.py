"""Fisher-structured momentum, orthogonalised: Muon between two Kronecker factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.precondition.fismo import whitening
from fgo_jax.precondition.shared import mesh
from fgo_jax.precondition.shared.leaves import check_floating, f32
from fgo_jax.precondition.shared.matrix_view import (
    DimensionNumbers,
    newton_schulz,
    newton_schulz_coefficients,
    views,
)
from fgo_jax.precondition.shared.preconditioner import Preconditioner


class ScaleByFismoState(NamedTuple):
    """State of `scale_by_fismo`, grouped by how often it changes.

    `optax.tree.map_params` treats each of the fields but `first_moment` as one value that is not
    parameter-shaped.
    """

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32; of matrices, in whitened coordinates.
    second_moment: Any  # leaf by leaf, like it, dtype=jnp.float32; None for matrices.
    # Leaf by leaf, a pair (P, Q), shape=(*batch, d, d), dtype=jnp.float32, with None for a side
    # above max_dim; () for leaves that are no matrices.
    factors: Any  # changes at every step.
    roots: Any  # as factors, P^-1/2 and Q^-1/2; changes at a refresh.


def scale_by_fismo(
    beta: jax.typing.ArrayLike = 0.95,
    factor_decay: jax.typing.ArrayLike = 0.95,
    damping: jax.typing.ArrayLike | None = None,
    refresh_every: jax.typing.ArrayLike = 10,
    ns_coeffs: Sequence[Any] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    eps: jax.typing.ArrayLike = 1e-8,
    max_dim: int = 1024,
    adam_b1: jax.typing.ArrayLike = 0.9,
    adam_b2: jax.typing.ArrayLike = 0.999,
    *,
    unit_gradients: bool = False,
    consistent_rms: jax.typing.ArrayLike | None = None,
    weight_dimension_numbers: DimensionNumbers = None,
) -> Preconditioner:
    r"""Muon's orthogonalised momentum, in the metric of two Kronecker factors of the Fisher.

    For a matrix with m rows, n columns and gradient G, from P = Q = I and M = 0 on,

        L = G Q^-1 G^T / n + damping tr(P)/m I,   P <- m S / tr S,  S = decay P + (1 - decay) L,
        R = G^T P^-1 G / m + damping tr(Q)/n I,   Q <- n T / tr T,  T = decay Q + (1 - decay) R,
        M <- beta M + (1 - beta) P^-1/2 G Q^-1/2,
        update = P^-1/2 polar(M / (1 - beta^t)) Q^-1/2.

    It is steepest descent under the spectral norm of the whitened step P^1/2 W Q^1/2. P and Q move
    at every step. Their inverse roots are those of the last refresh, which comes first at step 1
    and then every `refresh_every` steps; at a refresh, R already sees the new P^-1. polar(.) is
    approximate, by Newton and Schulz's iteration: an odd polynomial of the singular values.

    These are the published equations. Their damping is absolute, as tr(P) = m, and so is the weight
    of what a gradient brings: where the entries of G are far below 1, as most networks' are, P and
    Q stay near I and the update near Muon's (in a run on digits their eigenvalues never left .99
    to 1.05). With `unit_gradients`, L and R are fed with G / rms(G), so that the factors follow
    gradients of any size, and a constant factor of all gradients cancels. Then the damping is what
    bounds the update: a direction that no gradient has visited is multiplied by up to 1/damping.

    With P = Q = I, that is `factor_decay=1` or `max_dim=1`, it is
    `optax.contrib.scale_by_muon(nesterov=False)`, with the same defaults. (A matrix of one row or
    column is a vector here, unless `weight_dimension_numbers` names its axes.)

    Leaves that are no matrices (vectors, scalars) follow `optax.scale_by_adam`, as in
    `optax.contrib.muon`. Embeddings and the last layer should too: give them None in
    `weight_dimension_numbers`. Kernels of a higher rank are matrices of

        rank 2   [m, n]                  m x n,
        rank 3   [d, heads, head_dim]    d x (heads head_dim): the cut that is closest to a square;
        others   [h, w, c_in, c_out]     (h w c_in) x c_out: the last axis against the rest,

    or what `weight_dimension_numbers` says: axes that it does not name are a batch of matrices,
    each with its own factors (stacked, scanned layers: name the other axes). No leaf is reshaped.

    A matrix, or another leaf, with a non-finite entry in its gradient keeps its statistics and gets
    a zero update.

    The roots are eigendecompositions: a coupled Newton iteration needs only products, but its
    rounding in float32 grows with the condition, which nothing bounds at damping = 0.

    Memory: 4 bytes per parameter of a matrix (8 of other leaves), and for each side up to `max_dim`
    8 d^2 bytes: 8 (m/n + n/m) per parameter with both. Updates and moments are sharded as their
    leaf, factors are replicated. On a busy CPU set OPENBLAS_NUM_THREADS=1.

    Args:
      beta: decay rate of the momentum.
      factor_decay: decay rate of the factors, in [0, 1]; 1 keeps them at the identity.
      damping: the weight of the identity in each factor, see above. None is 1e-2, and 1 with
        `unit_gradients`.
      refresh_every: steps from one refresh of the inverse roots to the next.
      ns_coeffs: (a, b, c) of X <- a X + b A X + c A^2 X, A = X X^T; or one such triple per step,
        of which the last `ns_steps` are taken.
      ns_steps: steps of the iteration.
      eps: added to the norm that M is divided by before the iteration, and Adam's epsilon.
      max_dim: longest side that gets a factor; a longer one keeps the identity (one-sided).
      adam_b1, adam_b2: decay rates for the leaves that are no matrices.
      unit_gradients: see above.
      consistent_rms: None for the update above, of root mean square about 1/sqrt(max(m, n)). A
        number multiplies it by consistent_rms * sqrt(max(m, n)), as in `optax.contrib.muon`: at
        0.2 one learning rate serves matrices and the leaves of Adam.
      weight_dimension_numbers: `optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`
        of rows and columns: one for all leaves, or a tree of them shaped like the parameters, or a
        prefix of one, with None for leaves that follow Adam, or a function from the parameters
        to it. None for the table above.

    Returns:
      A `Preconditioner`. Its `metric` is P^-1/2 G Q^-1/2 / sqrt(s) for matrices, where s is the
      root mean square of the singular values of M that polar(.) divides by, and g divided by the
      root of Adam's denominator for the others; float32. Before the first update it is the
      identity.

    Raises:
      ValueError: an argument out of its range or one that shapes the computation and is traced, a
        leaf that is complex or not floating-point, axes that a leaf does not have.

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
    for name, decay in (("beta", beta), ("adam_b1", adam_b1), ("adam_b2", adam_b2)):
        _checks.fraction(name, decay)
    _checks.unit("factor_decay", factor_decay)
    _checks.static("unit_gradients", unit_gradients)
    if damping is None:
        damping = 1.0 if unit_gradients else 1e-2
    for name, number in (("damping", damping), ("eps", eps)):
        _checks.non_negative(name, number)
    _checks.integer("refresh_every", refresh_every)
    _checks.positive_int("max_dim", max_dim)
    if consistent_rms is not None:
        _checks.positive("consistent_rms", consistent_rms)
    coefficients = newton_schulz_coefficients(ns_coeffs, ns_steps)
    beta, factor_decay, damping, eps = map(f32, (beta, factor_decay, damping, eps))
    adam_b1, adam_b2 = f32(adam_b1), f32(adam_b2)

    def init(params):
        leaves = jax.tree.leaves(params)
        check_floating("scale_by_fismo", leaves)
        pairs = list(zip(leaves, views(weight_dimension_numbers, params), strict=True))

        def per_leaf(start):
            # `optax.tree.map_params` finds what is parameter-shaped by an init without leaves. It
            # takes one array there, not an empty tuple, for whatever a field may hold otherwise.
            return tuple(start(*pair) for pair in pairs) if leaves else jnp.zeros((0,), jnp.float32)

        def second_moment(x, view):
            return optax.tree.zeros_like(x, dtype=jnp.float32) if view is None else None

        def identities(x, view):
            return () if view is None else whitening.identities(x, view, max_dim)

        return ScaleByFismoState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=jnp.float32),
            second_moment=per_leaf(second_moment),
            factors=per_leaf(identities),
            roots=per_leaf(identities),
        )

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        if not leaves:
            return updates, state._replace(fisher_step=optax.safe_increment(state.fisher_step))
        check_floating("scale_by_fismo", leaves)
        found = views(weight_dimension_numbers, updates)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        first, second = treedef.flatten_up_to(state.first_moment), list(state.second_moment)
        factors, roots = list(state.factors), list(state.roots)
        grads, finite = zip(*map(_sane, leaves, found), strict=True)

        matrices = {i: view for i, view in enumerate(found) if view is not None}
        if matrices:
            old = [mesh.replicate((factors[i], roots[i]), grads[i]) for i in matrices]
            seen = [
                whitening.unit(grads[i], view) if unit_gradients else grads[i]
                for i, view in matrices.items()
            ]
            new = whitening.advance(
                seen,
                list(matrices.values()),
                *zip(*old, strict=True),
                decay=factor_decay,
                damping=damping,
                due=state.fisher_step % jnp.asarray(refresh_every, jnp.int32) == 0,
            )
            for (i, view), before, *after in zip(matrices.items(), old, *new, strict=True):
                # The roots too: they are of a factor that a bad gradient has damped.
                good = view.per_factor(finite[i])
                keep = lambda new, old, good=good: jnp.where(good, new, old)  # noqa: E731
                factors[i], roots[i] = jax.tree.map(keep, tuple(after), before)

        out = []
        for i, (g, view, good, leaf) in enumerate(zip(grads, found, finite, leaves, strict=True)):
            if view is None:
                m = adam_b1 * first[i] + (1 - adam_b1) * g
                v = adam_b2 * second[i] + (1 - adam_b2) * jnp.square(g)
                second[i] = jnp.where(good & jnp.isfinite(v), v, second[i])
                u = m / _correction(adam_b1, step)
                u = u / (jnp.sqrt(v / _correction(adam_b2, step)) + eps)
            else:
                m = beta * first[i] + (1 - beta) * _both(view, g, roots[i])
                good = good & jnp.isfinite(view.reduce(jnp.sum, jnp.abs(m)))
                u = newton_schulz(m / _correction(beta, step), view, coefficients, eps)
                u = _both(view, u, roots[i])
                if consistent_rms is not None:
                    u = u * (f32(consistent_rms) * max(view.dims) ** 0.5)
            first[i] = jnp.where(good, m, first[i])
            # Elementwise in the leaf, and so sharded as it is.
            u = jnp.where(jnp.isfinite(leaf) & good, u, 0.0)
            out.append(u.astype(jnp.result_type(leaf)))

        new = ScaleByFismoState(
            fisher_step=step,
            first_moment=treedef.unflatten(first),
            second_moment=tuple(second),
            factors=tuple(factors),
            roots=tuple(roots),
        )
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads, state):
        leaves, treedef = jax.tree.flatten(grads)
        check_floating("scale_by_fismo", leaves)
        found = views(weight_dimension_numbers, grads)
        first = treedef.flatten_up_to(state.first_moment)
        step = jnp.maximum(state.fisher_step, 1)
        rows = []
        for i, (leaf, view) in enumerate(zip(leaves, found, strict=True)):
            g = jnp.asarray(leaf, jnp.float32)
            if view is None:
                size = jnp.sqrt(state.second_moment[i] / _correction(adam_b2, step)) + eps
            else:
                g = _both(view, g, state.roots[i])
                square = view.reduce(jnp.sum, jnp.square(first[i] / _correction(beta, step)))
                size = jnp.sqrt(square / min(view.dims)) + eps
            rows.append(g / jnp.where(state.fisher_step == 0, 1.0, jnp.sqrt(size)))
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric)


def _correction(decay, step):
    return 1 - decay ** step.astype(jnp.float32)


def _sane(leaf, view):
    """The gradient in float32, zero where it is not finite, and where (by matrix) it is."""
    g = jnp.asarray(leaf, jnp.float32)
    good = jnp.isfinite(g)
    good = jnp.all(good) if view is None else view.reduce(jnp.all, good)
    return jnp.where(good, g, 0.0), good


def _both(view, x, roots):
    """P^-1/2 X Q^-1/2."""
    for side, root in enumerate(roots):
        x = whitening.multiply(view, x, root, side)
    return x
