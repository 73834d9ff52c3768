"""Adam in the eigenbasis of Kronecker factors that are estimated from gradients alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.precondition import _eigenbasis
from fgo_jax.precondition.preconditioner import Preconditioner


class ScaleByKroneckerFisherState(NamedTuple):
    """State of `scale_by_kronecker_fisher`, grouped by how often it changes."""

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32 or momentum_dtype; parameter coordinates.
    second_moment: Any  # like params, dtype=jnp.float32; coordinates of the eigenbasis.
    # Leaf by leaf, axis by axis of those factored. `optax.tree.map_params` treats each of these
    # two fields as one value that is not parameter-shaped.
    factors: Any  # tuple of tuples, shape=(d, d), dtype=jnp.float32; changes at every step.
    bases: Any  # as factors, eigenvectors in columns; changes at a refresh.
    previous: Any  # like params, dtype=jnp.float32; the last gradient if centred, else ().


def _f32(x):
    """A Python number as it is; an injected hyperparameter of any dtype in float32."""
    return x if isinstance(x, (int, float)) else jnp.asarray(x, jnp.float32)


def _check_real(leaves):
    for x in leaves:
        dtype = jnp.result_type(x)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"scale_by_kronecker_fisher does not take complex leaves ({dtype}): wrap it in "
                "optax.contrib.split_real_and_imaginary."
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"scale_by_kronecker_fisher takes floating-point leaves, got {dtype}: exclude "
                "the others with optax.masked."
            )


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

    A leaf has one factor for each axis with 1 < dim <= max_dim, of any rank: attention and
    convolution kernels get three or four. Leaves with a single axis longer than one are vectors;
    without a factor, as all scalars, they follow `optax.scale_by_adam`.

    Memory: 8 bytes per parameter for the two moments (12 if `centred`), and for an m x n leaf with
    both factors 8 (m/n + n/m) bytes per parameter more (16 if square), for factors and bases.
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

    Returns:
      A `Preconditioner`; its `metric` multiplies by P^(-1/2) in the eigenbasis and gives float32.
      Before the first update it is the identity.

    Raises:
      ValueError: an argument out of its range, a traced `power`, `max_dim` or `vector_factors`,
        a leaf that is complex or not floating-point.

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
    for name, decay in (("b1", b1), ("b2", b2), ("factor_decay", factor_decay)):
        _checks.fraction(name, decay)
    _checks.non_negative("eps", eps)
    _checks.integer("refresh_every", refresh_every)
    plain_damping = damping  # of leaves without a factor, which need none to be Adam
    if damping is None:
        damping, plain_damping = (1e-6, 0.0) if power == 0.5 else (1e-3, 1e-3)
    _checks.non_negative("damping", damping)
    momentum_dtype = jnp.dtype(jnp.float32 if momentum_dtype is None else momentum_dtype)
    b1, b2, factor_decay, eps = map(_f32, (b1, b2, factor_decay, eps))
    damping, plain_damping = _f32(damping), _f32(plain_damping)

    def axes_of(leaves):
        return tuple(
            _eigenbasis.factored_axes(jnp.shape(x), max_dim, vector_factors) for x in leaves
        )

    def correction(decay, step):
        return 1 - decay ** step.astype(jnp.float32)

    def spectrum(v, step, axes):
        """Eigenvalues of P, in the shape of the leaf."""
        v = v / correction(b2, step)
        relative = damping if axes else plain_damping
        if power != 0.5:
            # An inverse variance from t samples has no mean for t <= 2 (chi-squared), so the
            # estimate is drawn towards its mean with the weight of one sample.
            relative = jnp.maximum(relative, 1 / step.astype(jnp.float32))
        elif axes:
            # In the eigenbasis of one gradient that gradient is diagonal; what stands beside the
            # diagonal is rounding, which a division by its own size would blow up to one.
            relative = jnp.where(step == 1, jnp.maximum(relative, 1.0), relative)
        v = v + relative * jnp.mean(v)
        if centred:
            return (v + eps**2) ** power
        if power == 0.5:
            return jnp.sqrt(v) + eps
        v = v + eps**2
        return v**power * jnp.sqrt(jnp.mean(v ** (1 - 2 * power)))

    def init(params):
        leaves = jax.tree.leaves(params)
        _check_real(leaves)
        started = [_eigenbasis.start(x, ax) for x, ax in zip(leaves, axes_of(leaves), strict=True)]
        # `optax.tree.map_params` finds what is parameter-shaped by an init without leaves. It takes
        # one array there, and not an empty tuple, for whatever a field may hold otherwise.
        nothing = jnp.zeros((0,), jnp.float32)
        factors, bases = zip(*started, strict=True) if leaves else (nothing, nothing)
        return ScaleByKroneckerFisherState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=optax.tree.zeros_like(params, dtype=momentum_dtype),
            second_moment=optax.tree.zeros_like(params, dtype=jnp.float32),
            factors=factors,
            bases=bases,
            previous=optax.tree.zeros_like(params, dtype=jnp.float32) if centred else (),
        )

    def observed(grads, state, treedef):
        """What the statistics are made of."""
        if not centred:
            return grads
        previous = treedef.flatten_up_to(state.previous)
        rows = [g - before for g, before in zip(grads, previous, strict=True)]
        squares = [jnp.mean(jnp.square(row)) if row.size else jnp.ones(()) for row in rows]
        return [
            row * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0))
            for row, square in zip(rows, squares, strict=True)
        ]

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        _check_real(leaves)
        axes = axes_of(leaves)
        grads = [jnp.asarray(g, jnp.float32) for g in leaves]
        first = treedef.flatten_up_to(state.first_moment)
        second = treedef.flatten_up_to(state.second_moment)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))

        seen = observed(grads, state, treedef)
        factors = tuple(
            tuple(
                factor_decay * f + (1 - factor_decay) * _eigenbasis.outer_product(g, a)
                for f, a in zip(fs, ax, strict=True)
            )
            for fs, g, ax in zip(state.factors, seen, axes, strict=True)
        )
        bases = tuple(
            _eigenbasis.replicate_like(q, g) for q, g in zip(state.bases, grads, strict=True)
        )
        due = state.fisher_step % jnp.asarray(refresh_every, jnp.int32) == 0
        how = jnp.where(due, jnp.where(state.fisher_step == 0, 2, 1), 0)
        bases, second = _eigenbasis.refresh(how, factors, bases, axes, tuple(second))

        new_first, new_second, out = [], [], []
        for g, x, m, v, q, ax in zip(grads, seen, first, second, bases, axes, strict=True):
            m = (1 - b1) * g + b1 * m.astype(jnp.float32)
            v = (1 - b2) * _eigenbasis.rotate(x, q, ax) ** 2 + b2 * v
            u = _eigenbasis.rotate(m / correction(b1, step), q, ax) / spectrum(v, step, ax)
            new_first.append(m)
            new_second.append(v)
            u = _eigenbasis.rotate_back(u, q, ax)
            # True of every number. The comparison makes u elementwise in g, and what is elementwise
            # is sharded alike: else the partitioner picks a sharding that suits the contraction.
            out.append(jnp.where(g == g, u, g) if ax else u)

        new = ScaleByKroneckerFisherState(
            fisher_step=step,
            first_moment=treedef.unflatten(new_first),
            second_moment=treedef.unflatten(new_second),
            factors=factors if leaves else state.factors,
            bases=bases if leaves else state.bases,
            previous=treedef.unflatten(grads) if centred else (),
        )
        out = [u.astype(jnp.result_type(g)) for u, g in zip(out, leaves, strict=True)]
        new = optax.tree.cast_like(new, state)
        return treedef.unflatten(out), new

    def metric(grads, state):
        leaves, treedef = jax.tree.flatten(grads)
        _check_real(leaves)
        second = treedef.flatten_up_to(state.second_moment)
        # Before the first update there are no statistics: the identity.
        fresh = state.fisher_step == 0
        step = jnp.maximum(state.fisher_step, 1)
        rows = []
        for g, v, q, ax in zip(leaves, second, state.bases, axes_of(leaves), strict=True):
            x = _eigenbasis.rotate(jnp.asarray(g, jnp.float32), q, ax)
            x = x / jnp.where(fresh, 1.0, jnp.sqrt(spectrum(v, step, ax)))
            rows.append(_eigenbasis.rotate_back(x, q, ax))
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric, keeps_scale=not centred)
