"""Adam in the eigenbasis of Kronecker factors that are estimated from gradients alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.precondition.kronecker import eigenbasis
from fgo_jax.precondition.shared import mesh
from fgo_jax.precondition.shared.leaves import check_floating, f32
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers, views
from fgo_jax.precondition.shared.modes import Modes
from fgo_jax.precondition.shared.preconditioner import Preconditioner


class ScaleByKroneckerFisherState(NamedTuple):
    """State of `scale_by_kronecker_fisher`, grouped by how often it changes."""

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32 or momentum_dtype; parameter coordinates.
    # Like params, dtype=jnp.float32, in coordinates of the eigenbasis. Where the factors'
    # eigenvalues serve as V, a leaf with factors has optax.MaskedNode() here.
    second_moment: Any
    # Leaf by leaf, factor by factor. `optax.tree.map_params` treats each of these three fields as
    # one value that is not parameter-shaped.
    factors: Any  # tuple of tuples, shape=(*batch, d, d), dtype=jnp.float32; changes at every step.
    bases: Any  # as factors, eigenvectors in columns; changes at a refresh.
    eigenvalues: Any  # shape=(*batch, d), dtype=jnp.float32, as bases; () unless they serve as V.
    previous: Any  # like params, dtype=jnp.float32; the last gradient if centred, else ().


def scale_by_kronecker_fisher(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    factor_decay: jax.typing.ArrayLike = 0.95,
    eps: jax.typing.ArrayLike = 1e-8,
    refresh_every: jax.typing.ArrayLike = 10,
    max_dim: int = 1024,
    vector_factors: bool = False,
    power: float = 0.5,
    centred: bool = False,
    damping: jax.typing.ArrayLike | None = None,
    momentum_dtype: jax.typing.DTypeLike | None = None,
    *,
    corrected: bool = True,
    weight_dimension_numbers: DimensionNumbers = None,
) -> Preconditioner:
    r"""Adam in the eigenbasis of Kronecker factors estimated from gradients alone.

    For a leaf with gradient G and mode unfoldings G_(i), at step t,

        L_i <- decay L_i + (1 - decay) G_(i) G_(i)^T,      Q_i = eigenvectors of L_i,
        M   <- b1 M + (1 - b1) G,                          V <- b2 V + (1 - b2) Q^T(G)^2,
        A   =  V / (1 - b2^t) + damping * mean,            update = Q(Q^T(M) / (1 - b1^t) / P),

    where Q(.) multiplies every factored axis i by Q_i, the mean is that of V / (1 - b2^t), and

        P = sqrt(A) + eps                                         at power = 1/2 (Adam, SOAP),
        P = A^power * sqrt(mean(A^(1 - 2 power))), A += eps^2,    elsewhere.

    The second form is the first one's continuation. For gradients that are noise of variance A
    its update has the root mean square of Adam's at every power, so a learning rate keeps its
    meaning; at power = 1 the direction is the natural gradient of the diagonal A in the
    eigenbasis. A constant factor of the gradients cancels (down to eps).

    With `centred`, L_i and V are fed not with G but with D / rms(D), D = G - (the gradient before),
    which is noise of twice the covariance of G, brought to the same size at every step. Then A has
    mean 1, P = A^power, and the update is linear in the gradient: it shrinks with it, as a natural
    gradient does, instead of keeping its size. Early gradients, which are large, count no more than
    late ones, and the mean gradient counts not at all. A learning rate has the units of SGD's;
    where the transform takes over from another, `fgo_jax.phased` gives it the size of that one's
    updates.

    The basis comes from an eigendecomposition at the first step and from one step of orthogonal
    iteration at every `refresh_every`-th step after it; between refreshes only V moves. The first
    update, whose basis is made of the gradient that it rotates, is that gradient with its singular
    values levelled: a short step (root mean square 1/sqrt(max(m, n)) for an m x n leaf).

    Without `corrected`, V is not tracked. At every refresh it is read off the factors,

        V / (1 - b2^t)  =  the product over i of lambda_i, divided by tr(L_i) once less,

    lambda_i the eigenvalues of L_i along axis i (and divided by the length of an axis without a
    factor): Shampoo, with the inverse square root of each side at power 1/2 and Shampoo's own
    fourth root at 1/4.

    A leaf has one factor for each axis with 1 < dim <= max_dim, of any rank: attention and
    convolution kernels get three or four. Leaves with a single axis longer than one are vectors;
    without a factor, as all scalars, they follow `optax.scale_by_adam`. `weight_dimension_numbers`
    makes matrices of leaves instead: it names the axes of the rows and of the columns, each side
    up to `max_dim` has one factor, and axes that it does not name are a batch of matrices
    with factors each (stacked, scanned layers). A leaf to which it gives None is a vector.

    A leaf (of a batch, a matrix) with a non-finite entry in its gradient keeps its statistics and
    gets a zero update; the bias corrections count that step as any other.

    Memory: 8 bytes per parameter for the two moments (12 if `centred`, 4 without `corrected`), and
    for an m x n leaf with both factors 8 (m/n + n/m) bytes per parameter more (16 if square), for
    factors and bases.
    Updates and moments are sharded as their leaf. Factors and bases are replicated on a mesh with
    explicit axes; with automatic ones the partitioner may split them unless `out_shardings` pins
    them. On a busy CPU set OPENBLAS_NUM_THREADS=1: the threads of LAPACK wait for each other
    inside a refresh, seconds instead of milliseconds.

    Args:
      b1: decay rate of the first moment, which is kept in parameter coordinates.
      b2: decay rate of the second moment, which is kept in the eigenbasis.
      factor_decay: decay rate of the factors.
      eps: added to P at power 1/2, and eps^2 to A elsewhere.
      refresh_every: steps from one refresh of the bases to the next.
      max_dim: longest axis that gets a factor; 1 turns all of them off.
      vector_factors: whether vectors get a factor.
      power: exponent of the second moment, a Python number in [0, 1].
      centred: whether the statistics are of the gradients' noise alone, and scale-free.
      damping: added to the second moment, relative to its mean. None is 1e-3, and at power 1/2,
        where it has to hide only the rounding of the rotation, 1e-6 for leaves with a factor.
        It is at least 1 in the first step of a leaf with a factor, at least 1/t off power 1/2.
      momentum_dtype: dtype in which the first moment is stored, float32 if None. All else in the
        state is float32. Updates have the dtypes of the gradients.
      corrected: whether V is tracked in the eigenbasis, or is what the factors' eigenvalues make.
      weight_dimension_numbers: `optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`,
        or a tree (or prefix of one) of them shaped like the parameters, with None for vectors, or
        a function from the parameters to it. None gives every axis a factor of its own.

    Returns:
      A `Preconditioner`; its `metric` multiplies by P^(-1/2) in the eigenbasis and gives float32.
      Before the first update it is the identity.

    Raises:
      ValueError: an argument out of its range, one that decides what is computed and is traced, a
        leaf that is complex or not floating-point, axes that a leaf does not have.

    >>> import jax.numpy as jnp, optax
    >>> transform = scale_by_kronecker_fisher()
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    >>> state = transform.init(params)
    >>> [f.shape for f in state.factors[1]]
    [(3, 3), (2, 2)]
    >>> updates, state = transform.update(params, state)
    >>> params = optax.apply_updates(params, optax.tree.scale(-1e-3, updates))

    Sources: Vyas et al., SOAP, 2024 (arXiv 2409.11321), Algorithm 3; Gupta, Koren and Singer,
    Shampoo, 2018 (arXiv 1802.09568), for tensors; Eschenhagen et al., 2025 (arXiv 2506.03595), on
    why the eigenvalues are estimated apart from the basis.
    """
    _checks.static("power", power)
    _checks.unit("power", power)
    _checks.positive_int("max_dim", max_dim)
    _checks.static("vector_factors", vector_factors)
    _checks.static("centred", centred)
    _checks.static("corrected", corrected)
    for name, decay in (("b1", b1), ("b2", b2), ("factor_decay", factor_decay)):
        _checks.fraction(name, decay)
    _checks.non_negative("eps", eps)
    _checks.integer("refresh_every", refresh_every)
    with_factors = without = damping  # leaves without a factor need none to be Adam
    if damping is None:
        with_factors, without = (1e-6, 0.0) if power == 0.5 else (1e-3, 1e-3)
    _checks.non_negative("damping", with_factors)
    momentum_dtype = jnp.dtype(jnp.float32 if momentum_dtype is None else momentum_dtype)
    b1, b2, factor_decay, eps = map(f32, (b1, b2, factor_decay, eps))
    relative_damping = {True: f32(with_factors), False: f32(without)}

    def modes_of(tree):
        if weight_dimension_numbers is None:
            shapes = map(jnp.shape, jax.tree.leaves(tree))
            return [eigenbasis.axis_by_axis(s, max_dim, vector_factors) for s in shapes]
        return [
            Modes(jnp.shape(x), ()) if view is None else view.only(lambda d: 1 < d <= max_dim)
            for x, view in zip(
                jax.tree.leaves(tree), views(weight_dimension_numbers, tree), strict=True
            )
        ]

    def correction(decay, step):
        return 1 - decay ** step.astype(jnp.float32)

    def spectrum(v, eigenvalues, step, modes):
        """Eigenvalues of P, in the shape of the leaf."""
        v = eigenbasis.factored(eigenvalues, modes) if eigenvalues else v / correction(b2, step)
        relative = relative_damping[bool(modes.groups)]
        if power != 0.5:
            # An inverse variance from t samples has no mean for t <= 2 (chi-squared), so the
            # estimate is drawn towards its mean with the weight of one sample.
            relative = jnp.maximum(relative, 1 / step.astype(jnp.float32))
        elif modes.groups:
            # In the eigenbasis of one gradient that gradient is diagonal; what stands beside the
            # diagonal is rounding, which a division by its own size would blow up to one.
            relative = jnp.where(step == 1, jnp.maximum(relative, 1.0), relative)
        v = v + relative * modes.reduce(jnp.mean, v)
        if centred:
            return (v + eps**2) ** power
        if power == 0.5:
            return jnp.sqrt(v) + eps
        v = v + eps**2
        return v**power * jnp.sqrt(modes.reduce(jnp.mean, v ** (1 - 2 * power)))

    def tracked(modes):
        """Whether the leaf has a second moment of its own."""
        return corrected or not modes.groups

    def init(params):
        leaves, treedef = jax.tree.flatten(params)
        check_floating("scale_by_kronecker_fisher", leaves)
        modes = modes_of(params)
        started = [eigenbasis.start(x, m) for x, m in zip(leaves, modes, strict=True)]
        second = [
            optax.tree.zeros_like(x, dtype=jnp.float32) if tracked(m) else optax.MaskedNode()
            for x, m in zip(leaves, modes, strict=True)
        ]
        # `optax.tree.map_params` finds what is parameter-shaped by an init without leaves. It takes
        # one array there, and not an empty tuple, for whatever a field may hold otherwise.
        nothing = jnp.zeros((0,), jnp.float32)
        factors, bases = zip(*started, strict=True) if leaves else (nothing, nothing)
        return ScaleByKroneckerFisherState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=momentum_dtype),
            second_moment=treedef.unflatten(second),
            factors=factors,
            bases=bases,
            eigenvalues=()
            if corrected
            else tuple(tuple(f[..., 0] for f in leaf) for leaf in factors)
            if leaves
            else nothing,
            previous=optax.tree.zeros_like(params, dtype=jnp.float32) if centred else (),
        )

    def observed(grads, previous, modes):
        """What the statistics are made of."""
        if not centred:
            return grads
        rows = [g - before for g, before in zip(grads, previous, strict=True)]
        squares = [
            m.reduce(jnp.mean, jnp.square(row)) if row.size else jnp.ones(())
            for row, m in zip(rows, modes, strict=True)
        ]
        return [
            row * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
            for row, square in zip(rows, squares, strict=True)
        ]

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        check_floating("scale_by_kronecker_fisher", leaves)
        modes = modes_of(updates)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        grads = [jnp.asarray(g, jnp.float32) for g in leaves]
        # 0 g is 0 for every number. The sum is one pass that vector units are good at.
        good = [m.reduce(jnp.sum, 0 * g) == 0 for g, m in zip(grads, modes, strict=True)]
        grads = [jnp.where(ok, g, 0.0) for g, ok in zip(grads, good, strict=True)]
        first = treedef.flatten_up_to(state.first_moment)
        second = treedef.flatten_up_to(state.second_moment)
        previous = treedef.flatten_up_to(state.previous) if centred else grads
        seen = observed(grads, previous, modes)

        factors = tuple(
            tuple(
                jnp.where(
                    m.per_factor(ok),
                    factor_decay * f + (1 - factor_decay) * m.gram(g, k, "highest"),
                    f,
                )
                for k, f in enumerate(fs)
            )
            for fs, g, m, ok in zip(state.factors, seen, modes, good, strict=True)
        )
        bases, values = state.bases, state.eigenvalues
        if leaves:
            bases, values = zip(
                *(
                    mesh.replicate((q, values[i] if values else ()), g)
                    for i, (q, g) in enumerate(zip(bases, grads, strict=True))
                ),
                strict=True,
            )
        due = state.fisher_step % jnp.asarray(refresh_every, jnp.int32) == 0
        how = jnp.where(due, jnp.where(state.fisher_step == 0, 2, 1), 0)
        unbiased = jnp.asarray(correction(factor_decay, step))
        bases, second, values = eigenbasis.refresh(
            how, factors, bases, modes, tuple(second), values, unbiased
        )

        new_first, new_second, out = [], [], []
        for i, (g, x, m, ok) in enumerate(zip(grads, seen, modes, good, strict=True)):
            before = first[i].astype(jnp.float32)
            # What is kept is also what the update is made of: XLA then moves it in place.
            mean = jnp.where(ok, (1 - b1) * g + b1 * before, before)
            v = second[i]
            if tracked(m):
                v = jnp.where(ok, (1 - b2) * eigenbasis.rotate(x, bases[i], m) ** 2 + b2 * v, v)
            new_first.append(mean)
            new_second.append(v)
            u = eigenbasis.rotate(mean / correction(b1, step), bases[i], m)
            u = u / spectrum(v, values[i], step, m)
            u = eigenbasis.rotate_back(u, bases[i], m)
            # Elementwise in the leaf, and so sharded as it is: else the partitioner picks a
            # sharding that suits the contraction.
            out.append(jnp.where(ok & jnp.isfinite(leaves[i]), u, 0.0))

        new = ScaleByKroneckerFisherState(
            fisher_step=step,
            first_moment=treedef.unflatten(new_first),
            second_moment=treedef.unflatten(new_second),
            factors=factors if leaves else state.factors,
            bases=bases if leaves else state.bases,
            eigenvalues=values if leaves and not corrected else state.eigenvalues,
            previous=treedef.unflatten(
                [jnp.where(ok, g, p) for ok, g, p in zip(good, grads, previous, strict=True)]
            )
            if centred
            else (),
        )
        out = [u.astype(jnp.result_type(g)) for u, g in zip(out, leaves, strict=True)]
        new = optax.tree.cast_like(new, state)
        return treedef.unflatten(out), new

    def metric(grads, state):
        leaves, treedef = jax.tree.flatten(grads)
        check_floating("scale_by_kronecker_fisher", leaves)
        second = treedef.flatten_up_to(state.second_moment)
        # Before the first update there are no statistics: the identity.
        fresh = state.fisher_step == 0
        step = jnp.maximum(state.fisher_step, 1)
        rows = []
        for i, (g, m) in enumerate(zip(leaves, modes_of(grads), strict=True)):
            x = eigenbasis.rotate(jnp.asarray(g, jnp.float32), state.bases[i], m)
            values = () if corrected else state.eigenvalues[i]
            x = x / jnp.where(fresh, 1.0, jnp.sqrt(spectrum(second[i], values, step, m)))
            rows.append(eigenbasis.rotate_back(x, state.bases[i], m))
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric, keeps_scale=not centred)
