"""Adam in the eigenbasis of Kronecker factors, as a gradient transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.precondition.kronecker import eigenbasis
from fgo_jax.precondition.kronecker.second_moment import Denominator, scaled_noise
from fgo_jax.precondition.kronecker.state import ScaleByKroneckerFisherState
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    check_floating,
    empty_field,
    f32,
    held,
    usable_leaves,
)
from fgo_jax.precondition.shared.matrix_view import DimensionNumbers
from fgo_jax.precondition.shared.modes import Modes
from fgo_jax.precondition.shared.notes import note
from fgo_jax.precondition.shared.preconditioner import Preconditioner
from fgo_jax.precondition.shared.stacks import Stack, check_factors, numbers_for, stacks, treatments

_NAME = "scale_by_kronecker_fisher"


def scale_by_kronecker_fisher(
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.99,
    factor_decay: jax.typing.ArrayLike = 0.95,
    *,
    eps: jax.typing.ArrayLike = 1e-8,
    refresh_every: jax.typing.ArrayLike = 10,
    block_size: int = 1024,
    vector_factors: bool = False,
    power: float = 0.5,
    centred: bool = False,
    damping: jax.typing.ArrayLike | None = None,
    momentum_dtype: jax.typing.DTypeLike | None = None,
    factor_dtype: jax.typing.DTypeLike | None = None,
    corrected: bool = True,
    weight_dimension_numbers: DimensionNumbers = None,
) -> Preconditioner:
    r"""Adam in the eigenbasis of Kronecker factors that are estimated from gradients alone.

    It is a direction: no learning rate, no minus sign. :func:`fgo_jax.kronecker_fisher` adds both.

    For a leaf with gradient G and mode unfoldings G_(i), at step t,

        L_i <- decay L_i + (1 - decay) G_(i) G_(i)^T,      Q_i = eigenvectors of L_i,
        M   <- b1 M + (1 - b1) Q^T(G),                     V <- b2 V + (1 - b2) Q^T(G)^2,
        A   =  V / (1 - b2^t) + damping * mean,            update = Q(M / (1 - b1^t) / P),

    where Q(.) multiplies every factored axis i by Q_i, the mean is that of V / (1 - b2^t), and

        P = sqrt(A) + eps                                         at power = 1/2 (Adam, SOAP),
        P = A^power * sqrt(mean(A^(1 - 2 power))), A += eps^2,    at other powers.

    At power 1/2 both are equal, up to eps. If gradients are only noise, updates have the root mean
    square of Adam's at every power, so one learning rate fits all. At power = 1 the direction is
    the natural gradient of the diagonal A. A common factor of all gradients cancels.

    Noise alone: with `centred`, D / rms(D) takes the place of G in L_i and V, where D is G minus
    the previous gradient. D is noise of twice the covariance of G. The division brings it to the
    same size at every step, so large early gradients weigh no more than later ones. The mean
    gradient counts at the first step alone, where D is G; that share of V fades as b2^t. Then A has
    mean 1, P = A^power, and the update is linear in the gradient: it shrinks with it, as a natural
    gradient does. A learning rate has the units of SGD's.

    Bases: the first step computes an eigendecomposition. Every `refresh_every`-th step after it
    makes one step of orthogonal iteration. It also writes M in the new basis, and moves the entries
    of V with their eigenvectors. Between refreshes Q_i stays. The first update is the gradient with
    its large singular values levelled, of root mean square 1/sqrt(max(m, n)) at most.

    Shampoo: with `corrected=False`, V is not tracked. Every refresh computes it from the factors,

        V / (1 - b2^t)  =  the product over i of lambda_i, divided by tr(L)^(number of factors - 1),

    with lambda_i the eigenvalues of L_i along axis i; all L_i have the same trace. It is also
    divided by the length of each axis without a factor. This is Shampoo, with the inverse square
    root of each side at power 1/2 and Shampoo's own fourth root at power 1/4. The first positive
    trace triggers an extra refresh. If the trace has more than doubled since the last refresh, the
    excess is added evenly to V. This damps a spike before its direction is known.

    Factors: a leaf of any rank has one for each axis longer than one; attention and convolution
    kernels have three or four. An axis longer than `block_size` is cut into the fewest equal blocks
    that fit, each with factors of its own, as in distributed Shampoo. If they would be shorter than
    a quarter of it, as on a longer axis of prime length, there is no factor: pad it. An axis longer
    than six times the product of the others is cut too, where it can be. A leaf with one axis
    longer than one is a vector, without a factor by default. A leaf without any factor follows
    `optax.scale_by_adam(b1, b2)`. :func:`fgo_jax.describe` lists the factors of each leaf.

    `weight_dimension_numbers` makes matrices of leaves instead. It names the axes of the rows and
    those of the columns; each side has one factor, or one per block. Axes that it does not name are
    a batch of matrices with factors of their own (scanned layers). None gives a leaf no factor.

    Stacks: leaves of equal shape whose names differ in numbers alone (layers) are computed as one.

    A leaf (or a matrix of a batch) whose gradient is not finite, or has squares that overflow
    float32, keeps its statistics and gets a zero update; bias corrections count that step. With
    `centred`, two equal gradients in a row hold no noise: A and L_i stay.

    Devices: updates are sharded like their leaf; moments, factors and bases like its blocks.

    | a shard is | devices exchange at every step |
    |---|---|
    | whole blocks | one number for each leaf: is it finite? |
    | part of a block, in a stack that can be dealt out | gradients and updates |
    | any other | gradients; every device keeps all moments |

    A stack can be dealt out if the mesh axis divides its number of leaves: then each device
    computes whole leaves. On automatic axes the first row needs every mesh axis to divide the
    number of blocks along a side; the second, every one to divide that of leaves, none that of
    blocks. Refreshes exchange nothing there. A leaf that is not sharded is refreshed by all devices
    together; :func:`fgo_jax.state_shardings` can split its state and its other work too. The mesh
    changes results by rounding alone. Refreshes amplify it where eigenvalues are nearly equal, or a
    block is more than `refresh_every` times as long as wide. `jax.vmap` needs automatic axes.

    On a busy CPU set OPENBLAS_NUM_THREADS=1, or the threads of LAPACK wait for each other.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      factor_decay: decay rate of the factors, in [0, 1).
      eps: added to P at power 1/2, and eps^2 to A elsewhere; in the unit of a gradient (of
        D / rms(D), which has none, if `centred`).
      refresh_every: steps from one refresh of the bases to the next.
      block_size: longest side of a block; 1 turns all factors off. A step takes 6 (m + n)
        operations for each parameter of an m x n block, so smaller blocks are cheaper.
      vector_factors: whether vectors get a factor.
      power: exponent of the second moment, a Python number in [0, 1].
      centred: whether the statistics are those of the gradients' noise, scaled to unit size.
      damping: added to the second moment, relative to its mean. None is 1e-3; at power 1/2 it is
        1e-6 for leaves with a factor, which hides the rounding errors of the rotation, and 0 for
        the others. Its least value is 1 at step 1 for leaves with a factor; and 1/t at step t for
        all leaves at other powers, and for those with a factor without `corrected`.
      momentum_dtype: of the stored first moment, float32 if None; if it is bfloat16, also of the
        slow momentum and the average of :func:`fgo_jax.phased`. Updates have the dtypes of the
        gradients; all else, and all arithmetic, is float32.
      factor_dtype: of the stored factors and bases, float32 if None.
      corrected: whether V is tracked in the eigenbasis, or computed from the factors' eigenvalues.
      weight_dimension_numbers: `optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`,
        or a tree of them (or a prefix of one) shaped like the parameters with None for leaves
        without a factor, or a function from the parameters to it. None gives every axis its own
        factor.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`. Its `metric` multiplies by P^(-1/2) in the
      eigenbasis, in float32; before an entry's first gradient it is the identity. The state takes 8
      bytes per parameter for the moments, 4 more if `centred`, 4 less without `corrected`; and for
      an m x n leaf with both factors 8 (m/n + n/m) more (16 if square) for factors and bases.

    Raises:
      ValueError: for an argument out of its range, for a traced one that decides what is computed,
        for a leaf that is complex or not floating-point, and for axes that a leaf does not have.

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
    flags = {"vector_factors": vector_factors, "centred": centred, "corrected": corrected}
    for name, option in {"power": power, **flags}.items():
        _checks.static(name, option)
    _checks.unit("power", power)
    _checks.positive_int("block_size", block_size)
    for name, decay in (("b1", b1), ("b2", b2), ("factor_decay", factor_decay)):
        _checks.fraction(name, decay)
    _checks.non_negative("eps", eps)
    _checks.integer("refresh_every", refresh_every)
    with_factors = without = damping
    if damping is None:
        with_factors, without = (1e-6, 0.0) if power == 0.5 else (1e-3, 1e-3)
    _checks.non_negative("damping", with_factors)
    momentum_dtype = _checks.average_dtype("momentum_dtype", momentum_dtype)
    factor_dtype = _checks.average_dtype("factor_dtype", factor_dtype)
    b1, b2, factor_decay, eps = map(f32, (b1, b2, factor_decay, eps))
    denominator = Denominator(
        b2, factor_decay, eps, power, centred, f32(with_factors), f32(without)
    )

    def stacks_of(tree: Any) -> list[Stack]:
        modes = eigenbasis.modes_of(tree, weight_dimension_numbers, vector_factors)
        return [stack.batch_first() for stack in stacks(tree, modes, block_size)]

    def tracked(modes: Modes) -> bool:
        """Whether a stack has a second moment of its own."""
        return corrected or not modes.groups

    def init(params: Any) -> ScaleByKroneckerFisherState:
        leaves = jax.tree.leaves(params)
        check_floating(_NAME, leaves)
        stacked = stacks_of(params)
        note(_NAME, params, treatments(stacked, leaves, factor_dtype or jnp.float32))
        started = [eigenbasis.start(stack, leaves, factor_dtype) for stack in stacked]
        values: Any = ()
        if not corrected:
            values = tuple(tuple(f32(f[..., 0]) for f in fs) for fs, _ in started)
        first = tuple(s.zeros(leaves, momentum_dtype) for s in stacked)
        previous = tuple(s.zeros(leaves) for s in stacked) if centred else ()
        second = tuple(s.zeros(leaves) if tracked(s.modes) else () for s in stacked)
        return ScaleByKroneckerFisherState(
            fisher_step=jnp.zeros((), jnp.int32),
            first_moment=first if leaves else empty_field(),
            previous=previous if leaves or not centred else empty_field(),
            second_moment=second if leaves else empty_field(),
            factors=tuple(f for f, _ in started) if leaves else empty_field(),
            bases=tuple(q for _, q in started) if leaves else empty_field(),
            eigenvalues=values if leaves or corrected else empty_field(),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        del params, extra_args
        leaves, treedef = jax.tree.flatten(updates)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        if not leaves:
            return updates, state._replace(fisher_step=step)
        check_floating(_NAME, leaves)
        stacked = stacks_of(updates)
        modes = [stack.modes for stack in stacked]
        check_factors(_NAME, tuple(m.factor_shapes for m in modes), state.factors)
        homes, matrices = state.first_moment, [stack.matrices for stack in stacked]
        joined = [f32(stack.join(leaves, x)) for stack, x in zip(stacked, homes, strict=True)]
        grads, good = usable_leaves(joined, matrices)
        rows, counted, stays = grads, good, (1, 1)
        if centred:
            rows, counted = scaled_noise(grads, state.previous, matrices, good)
            # A constant gradient shows no noise. Averages that fade would raise it by b2^-t.
            stays = held(factor_decay, step), held(b2, step)
        factors = eigenbasis.averaged(state.factors, rows, modes, counted, factor_decay, stays[0])
        how = eigenbasis.refresh_kind(state.fisher_step, refresh_every, factors, state.eigenvalues)
        unbiased = jnp.asarray(bias_correction(factor_decay, step))
        moments = eigenbasis.Moments(state.first_moment, state.second_moment, state.eigenvalues)
        bases, (first, second, values) = eigenbasis.refresh(
            how, factors, state.bases, rows, modes, moments, unbiased
        )
        new_first, new_second, out = [], [], list(leaves)
        numbers = numbers_for(stacked, step)
        for i, (stack, m, x, ok) in enumerate(zip(stacked, modes, rows, counted, strict=True)):
            mean, v = f32(first[i]), second[i]
            x = eigenbasis.rotate(x, bases[i], m)
            if tracked(m):
                v = jnp.where(ok, (1 - b2) * x**2 + b2 * v, stays[1] * v)
            new_second.append(v)
            if centred:
                x, ok = eigenbasis.rotate(grads[i], bases[i], m), good[i]
            mean = jnp.where(ok, (1 - b1) * x + b1 * mean, mean)
            new_first.append(mean)
            u = mean / bias_correction(b1, step) / denominator(v, values[i], factors[i], step, m)
            u = jnp.where(good[i], eigenbasis.rotate_back(u, bases[i], m), 0.0)
            for place, part in stack.split(u, leaves, numbers):
                if mesh.number_of_devices(leaves[place]) > 1:
                    # Elementwise in the leaf, so it is sharded like the leaf, not the product.
                    part = jnp.where(jnp.isfinite(leaves[place]), part, 0.0)
                out[place] = part.astype(jnp.result_type(leaves[place]))
        last = zip(good, grads, state.previous, strict=True) if centred else ()
        new = ScaleByKroneckerFisherState(
            fisher_step=step,
            first_moment=tuple(new_first),
            previous=tuple(jnp.where(ok, g, old) for ok, g, old in last),
            second_moment=tuple(new_second),
            factors=factors,
            bases=bases,
            eigenvalues=state.eigenvalues if corrected else values,
        )
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        check_floating(_NAME, leaves)
        step = jnp.maximum(state.fisher_step, 1)
        rows = [jnp.asarray(x, jnp.float32) for x in leaves]
        stacked = stacks_of(grads)
        numbers = numbers_for(stacked, state.fisher_step)
        for i, stack in enumerate(stacked):
            m = stack.modes
            x = eigenbasis.rotate(stack.join(rows, state.first_moment[i]), state.bases[i], m)
            values = () if corrected else state.eigenvalues[i]
            p = denominator(state.second_moment[i], values, state.factors[i], step, m)
            root = jnp.where(denominator.is_unknown(p), 1.0, jnp.sqrt(p))
            x = eigenbasis.rotate_back(x / root, state.bases[i], m)
            for place, part in stack.split(x, leaves, numbers):
                rows[place] = part
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric, not centred, momentum_dtype)
