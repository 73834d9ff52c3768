"""Muon between two Kronecker factors, as a gradient transformation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.precondition.fismo import directions, whitening
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    check_floating,
    empty_field,
    f32,
    usable_leaves,
)
from fgo_jax.precondition.shared.matrix_view import (
    DimensionNumbers,
    newton_schulz_coefficients,
    views,
)
from fgo_jax.precondition.shared.modes import Modes
from fgo_jax.precondition.shared.notes import note
from fgo_jax.precondition.shared.preconditioner import Preconditioner

_NAME = "scale_by_fismo"


class ScaleByFismoState(NamedTuple):
    """State of :func:`scale_by_fismo`, grouped by how often it changes.

    `optax.tree.map_params` treats every field but `first_moment` as one value that is not
    parameter-shaped.
    """

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32; whitened coordinates for matrices.
    second_moment: Any  # tuple, an array like each leaf, dtype=jnp.float32; None for matrices.
    # A tuple with a pair (P, Q) for each leaf, shape=(*batch, d, d), dtype=jnp.float32. A side
    # above max_dim has None; a leaf that is no matrix has ().
    factors: Any  # changes at every step.
    roots: Any  # like factors, P^-1/2 and Q^-1/2; changes at a refresh.


def scale_by_fismo(
    beta: jax.typing.ArrayLike = 0.95,
    factor_decay: jax.typing.ArrayLike = 0.95,
    damping: jax.typing.ArrayLike | None = None,
    *,
    refresh_every: jax.typing.ArrayLike = 10,
    ns_coeffs: Sequence[Any] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    eps: jax.typing.ArrayLike = 1e-8,
    max_dim: int = 1024,
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

    Size of the gradients: the published equations do not divide X and Y. Their damping is absolute,
    since tr(P) = m, and so is the weight of a gradient. The division bounds that weight where G is
    above 1, as that of a summed loss: it would leave the damping and all earlier gradients behind.
    If the entries of G are far below 1, as those of most networks are, P and Q stay near I and the
    update is near Muon's (in a run on digits their eigenvalues stayed within 0.99 and 1.05).
    `unit_gradients` puts G / rms(G) into L and R. The factors then follow gradients of any
    size, and a constant factor of all gradients cancels. The damping then bounds the update: a
    direction that no gradient has visited is multiplied by up to 1/damping.

    With P = Q = I, that is `factor_decay=1` or `max_dim=1`, the update is that of
    `optax.contrib.scale_by_muon(nesterov=False)`, with the same defaults. One difference: a matrix
    of one row or column is a vector here, unless `weight_dimension_numbers` names its axes.

    Leaves that are no matrices (vectors, scalars) follow `optax.scale_by_adam`, as in
    `optax.contrib.muon`. Let embeddings and the last layer do so too: give them None in
    `weight_dimension_numbers`. Kernels of a higher rank are matrices of

        rank 2   [m, n]                  m x n,
        rank 3   [d, heads, head_dim]    d x (heads head_dim): the cut that is closest to a square;
        others   [h, w, c_in, c_out]     (h w c_in) x c_out: the last axis against the rest,

    unless `weight_dimension_numbers` names other axes. The axes that it does not name are a batch
    of matrices, each with its own factors (for stacked, scanned layers, name the other axes). No
    leaf is reshaped.

    A matrix, or another leaf, whose gradient is not finite, or has squares that overflow float32,
    keeps its statistics and gets a zero update.

    The roots come from eigendecompositions. A coupled Newton iteration would need only products,
    but its rounding error in float32 grows with the condition number, and at damping = 0 nothing
    bounds that.

    Updates and moments are sharded like their leaf; factors are replicated. On a busy CPU set
    OPENBLAS_NUM_THREADS=1.

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
      max_dim: longest side that gets a factor. A longer one keeps the identity (one-sided).
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
      Adam's denominator. It gives float32, and before the first update it is the identity. The
      state takes 4 bytes per parameter of a matrix, 8 of other leaves, and 8 d^2 bytes for each
      side d up to `max_dim`: 8 (m/n + n/m) bytes per parameter of an m x n matrix with both.

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

    def init(params: Any) -> ScaleByFismoState:
        leaves = jax.tree.leaves(params)
        check_floating(_NAME, leaves)
        pairs = list(zip(leaves, views(weight_dimension_numbers, params), strict=True))
        note(_NAME, params, [whitening.treatment(*pair, max_dim) for pair in pairs])

        def per_leaf(start: Callable[[Any, Any], Any]) -> Any:
            return tuple(start(*pair) for pair in pairs) if leaves else empty_field()

        def second_moment(x: Any, view: Modes | None) -> Any:
            return optax.tree.zeros_like(x, dtype=jnp.float32) if view is None else None

        def identities(x: Any, view: Modes | None) -> Any:
            return () if view is None else whitening.identities(x, view, max_dim)

        return ScaleByFismoState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=jnp.float32),
            second_moment=per_leaf(second_moment),
            factors=per_leaf(identities),
            roots=per_leaf(identities),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        if not leaves:
            return updates, state._replace(fisher_step=step)
        check_floating(_NAME, leaves)
        found = views(weight_dimension_numbers, updates)
        first, second = treedef.flatten_up_to(state.first_moment), list(state.second_moment)
        grads, finite = usable_leaves(leaves, found)
        due = state.fisher_step % jnp.asarray(refresh_every, jnp.int32) == 0
        factors, roots = _whitened(
            grads,
            finite,
            found,
            state,
            unit_gradients,
            decay=factor_decay,
            damping=damping,
            due=due,
        )

        out = []
        for i, (g, view, good, leaf) in enumerate(zip(grads, found, finite, leaves, strict=True)):
            if view is None:
                m, v, u = directions.adam(g, first[i], second[i], step, adam_b1, adam_b2, eps)
                second[i] = jnp.where(good & jnp.isfinite(v), v, second[i])
            else:
                m, u = directions.orthogonalised(
                    g, first[i], roots[i], view, step, beta, coefficients, eps
                )
                good = good & jnp.isfinite(view.reduce(jnp.sum, jnp.square(m)))
                if consistent_rms is not None:
                    u = u * (f32(consistent_rms) * max(view.dims) ** 0.5)
            first[i] = jnp.where(good, m, first[i])
            # An elementwise function of the leaf is sharded like it.
            u = jnp.where(jnp.isfinite(leaf) & good, u, 0.0)
            out.append(u.astype(jnp.result_type(leaf)))

        new = ScaleByFismoState(
            fisher_step=step,
            first_moment=treedef.unflatten(first),
            second_moment=tuple(second),
            factors=factors,
            roots=roots,
        )
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        check_floating(_NAME, leaves)
        found = views(weight_dimension_numbers, grads)
        first = treedef.flatten_up_to(state.first_moment)
        step = jnp.maximum(state.fisher_step, 1)
        rows = []
        for i, (leaf, view) in enumerate(zip(leaves, found, strict=True)):
            g = jnp.asarray(leaf, jnp.float32)
            if view is None:
                size = jnp.sqrt(state.second_moment[i] / bias_correction(adam_b2, step)) + eps
            else:
                g = directions.between(view, g, state.roots[i])
                square = view.reduce(jnp.sum, jnp.square(first[i] / bias_correction(beta, step)))
                size = jnp.sqrt(square / min(view.dims)) + eps
            rows.append(g / jnp.where(state.fisher_step == 0, 1.0, jnp.sqrt(size)))
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric)


def _whitened(
    grads: Sequence[jax.Array],
    finite: Sequence[jax.Array],
    found: Sequence[Modes | None],
    state: ScaleByFismoState,
    unit_gradients: bool,
    **how: Any,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The factors and roots of all leaves after a step, as `whitening.advance` makes them."""
    factors, roots = list(state.factors), list(state.roots)
    matrices = {i: view for i, view in enumerate(found) if view is not None}
    if not matrices:
        return tuple(factors), tuple(roots)
    old = [mesh.replicate((factors[i], roots[i]), grads[i]) for i in matrices]
    observed = [
        whitening.unit(grads[i], view) if unit_gradients else grads[i]
        for i, view in matrices.items()
    ]
    new = whitening.advance(observed, list(matrices.values()), *zip(*old, strict=True), **how)
    for (i, view), before, *after in zip(matrices.items(), old, *new, strict=True):
        # The roots as well: those of a skipped gradient come from a factor that only damping moved.
        good = view.per_factor(finite[i])
        keep = lambda new, old, good=good: jnp.where(good, new, old)  # noqa: E731
        factors[i], roots[i] = jax.tree.map(keep, tuple(after), before)
    return tuple(factors), tuple(roots)
