"""A gradient damped along the top eigenvectors of a curvature operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh, whole_blocks
from fgo_jax.linalg.decompositions import eigh
from fgo_jax.linalg.devices import mean_over
from fgo_jax.linalg.krylov import coefficients, combination, krylov_space, random_block
from fgo_jax.linalg.operator import Operator, bind_matvec
from fgo_jax.precondition.shared import model as models
from fgo_jax.precondition.shared.leaves import (
    bias_correction,
    check_floating,
    empty_field,
    given_back,
    usable_leaves,
)
from fgo_jax.precondition.shared.preconditioner import Preconditioner

_NAME = "scale_by_low_rank_fisher"


class ScaleByLowRankFisherState(NamedTuple):
    """State of :func:`scale_by_low_rank_fisher`, grouped by how often it changes."""

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32; () if b1 is None.
    # The following fields change at a refresh.
    refreshes: jax.Array  # shape=(), dtype=jnp.int32; those not discarded. At zero, P is I.
    eigenvalues: jax.Array  # shape=(rank,), dtype=jnp.float32; falling, zero where there is none.
    rho: jax.Array  # shape=(), dtype=jnp.float32; the eigenvalue of all other directions.
    # Leaf by leaf; `optax.tree.map_params` treats it as one value that is not parameter-shaped.
    eigenvectors: Any  # tuple, shape=(rank, *leaf.shape), dtype=jnp.float32; orthonormal rows.
    fisher_key: jax.Array  # shape=(2,), dtype=jnp.uint32; never changes.


def scale_by_low_rank_fisher(
    operator: Operator,
    rank: int = 8,
    num_steps: int = 16,
    *,
    every: jax.typing.ArrayLike = 100,
    damping: jax.typing.ArrayLike = 1.0,
    b1: jax.typing.ArrayLike | None = 0.9,
    unit_gain: bool = True,
    block_size: int = 1,
    axis_name: str | None = None,
    seed: int = 0,
) -> Preconditioner:
    r"""Damps gradients along the top eigenvectors of any curvature operator.

    It is a direction: no learning rate, no minus sign.

    At the first step and then every ``every`` steps, ``num_steps`` steps of a Lanczos process at
    the current parameters and batch give the ``rank`` largest Ritz pairs l_i, u_i of the operator.
    The rest of its spectrum is replaced by one eigenvalue rho, set by the smallest one kept:

        P = sum_i l_i u_i u_i^T + rho I,        rho = damping * min {l_i > 0},
        M <- b1 M + (1 - b1) G,                 update = rho P^-1 M / (1 - b1^t)
                                                       = M' - sum_i l_i / (l_i + rho) u_i u_i^T M'

    with M' = M / (1 - b1^t). No direction is projected out. Along u_i the gradient keeps the share
    rho / (l_i + rho), and the curvature there times that share is below rho. The eigenvalues that
    are left out should not exceed min l_i either. So the largest curvature that limits the learning
    rate falls from l_1 to about min l_i, and the rate may rise by that ratio. With `unit_gain` the
    rest of the gradient passes unchanged, and a learning rate has the unit and the meaning of
    SGD's. Without it the update is P^-1 M', a damped natural-gradient step, for rates up to about
    one.

    A refresh with a non-finite eigenvalue, or without a positive one, is discarded: the last pairs
    stay. Before the first refresh P = I, and it is tried again at every step. If the operator has a
    lower rank, the remaining eigenvalues are zero and rho follows the smallest positive one.
    Negative eigenvalues (of a Hessian) count as zero. A leaf whose gradient is not finite, or has
    squares that overflow float32, gets a zero update and enters nothing, until it is finite again.

    The Lanczos process reorthogonalises fully. With a block of one it finds one copy of an
    eigenvalue that is repeated exactly; a block of b finds b of them.

    Cost: a step reads the eigenvectors twice. A refresh takes num_steps + block_size products, each
    about two gradients of the batch, and needs another 4 * (num_steps + block_size + rank) bytes
    per parameter. To refresh on a part of the batch, let the operator take that part:
    ``lambda params, batch: fisher(params, batch[:64])``. Meshes need automatic axes.

    Args:
      operator: ``(params, batch) -> matvec`` such as those of :mod:`fgo_jax.curvature`; symmetric.
        One that requires a keyword ``key`` gets a new key at every refresh.
      rank: number of eigenpairs to damp.
      num_steps: steps of the Lanczos process, at least ``rank``; twice that resolves them well.
      every: steps from one refresh to the next.
      damping: rho relative to the smallest eigenvalue kept, > 0.
      b1: decay rate of the first moment, in [0, 1); None keeps no moment.
      unit_gain: whether the update uses rho P^-1, or P^-1 itself.
      block_size: start vectors of the Lanczos process, at most ``num_steps``. One sees a multiple
        eigenvalue once, b of them see b copies.
      axis_name: inside `jax.pmap` or `jax.shard_map`: the axis over which the batch is split and
        curvature is averaged. Gradients are expected to be averaged already.
      seed: of the key for start vectors and the operator's draws.

    Returns:
      A :class:`fgo_jax.precondition.Preconditioner`. Its update requires ``params`` and the keyword
      ``batch``, and under `optax.masked` or `optax.partition` also ``probe_params``, the whole
      tree; the operator is then restricted to the leaves at hand. Its `metric` multiplies by
      (rho P^-1)^(1/2), or by P^(-1/2) without `unit_gain`, and gives float32; before the first
      refresh it is the identity. The state takes 4 * rank bytes per parameter for the eigenvectors,
      sharded like their leaf, and 4 for M.

    Raises:
      ValueError: for an argument out of its range, for a traced one that shapes the state, and for
        a leaf that is complex or not floating-point.
      TypeError: in ``update``, without ``batch`` or without the parameters.

    >>> import jax.numpy as jnp
    >>> curvatures = jnp.array([100.0, 1.0, 1.0])
    >>> operator = lambda params, batch: lambda v: curvatures * v
    >>> transform = scale_by_low_rank_fisher(operator, rank=2, num_steps=3)
    >>> params = jnp.ones(3)
    >>> state = transform.init(params)
    >>> updates, state = transform.update(curvatures * params, state, params, batch=None)
    >>> round(float(updates[0]), 2)  # 100 * rho / (100 + rho), rho = 1
    0.99

    Sources: Erdogdu and Montanari, NewSamp, 2015 (arXiv 1508.02810), where all others get one
    eigenvalue, the first one left out; Martens, 2020 (arXiv 1412.1193), section 6, on damping; Song
    et al., 2024 (arXiv 2405.16002), on training confined to the top eigenvectors, which stalls.
    """
    _checks.positive_int("rank", rank)
    _checks.positive_int("num_steps", num_steps)
    _checks.positive_int("block_size", block_size)
    if num_steps < max(rank, block_size):
        raise ValueError(
            f"num_steps={num_steps} products show at most as many eigenpairs, got rank={rank} and "
            f"block_size={block_size}: pass num_steps= of at least {2 * max(rank, block_size)}."
        )
    _checks.integer("every", every)
    _checks.positive("damping", damping)
    if b1 is not None:
        _checks.fraction("b1", b1)
    b1 = None if _checks.is_off(b1) else b1
    for name, value in (("unit_gain", unit_gain), ("seed", seed)):
        _checks.static(name, value)

    def refreshed(old: Any, model: Any, batch: Any, key: jax.Array, updates: Any) -> Any:
        inner = models.restrict(model, updates)
        matvec = bind_matvec(operator, model, batch, key, axis_name=axis_name)

        def product(vector: Any) -> Any:
            whole = matvec(models.lift(vector, model))
            return mean_over(axis_name, models.restrict(whole, updates))

        # One power step: random start vectors move into the range of the operator and nearer to its
        # top. A start with a part in the null space would leave Ritz vectors that have not
        # converged there, which would damp directions without curvature.
        block = jax.lax.map(product, random_block(key, inner, block_size))
        space = krylov_space(product, block, num_steps)
        top, kept, rows = top_ritz_pairs(space.matrix, rank, rounding_error(inner))
        smallest = jnp.min(jnp.where(kept, top, jnp.inf))
        new = old._replace(
            refreshes=old.refreshes + 1,
            eigenvalues=jnp.where(kept, top, 0.0),
            rho=jnp.asarray(damping, jnp.float32) * smallest,
            eigenvectors=tuple(
                map(
                    mesh.elementwise_rows,
                    jax.tree.leaves(combination(rows, space.basis)),
                    jax.tree.leaves(inner),
                )
            ),
        )
        # The maximum is finite only if no eigenvalue is NaN or positive infinity.
        good = jnp.isfinite(jnp.max(top)) & (jnp.max(top) > 0) & jnp.isfinite(new.rho)
        return optax.tree.where(good, new, old)

    def init(params: Any) -> ScaleByLowRankFisherState:
        leaves = jax.tree.leaves(params)
        check_floating(_NAME, leaves)
        return ScaleByLowRankFisherState(
            fisher_step=jnp.zeros([], jnp.int32),
            first_moment=() if b1 is None else optax.tree.zeros_like(params, dtype=jnp.float32),
            refreshes=jnp.zeros([], jnp.int32),
            eigenvalues=jnp.zeros([rank], jnp.float32),
            rho=jnp.ones([], jnp.float32),
            eigenvectors=tuple(whole_blocks.rows_of_zeros(p, rank) for p in leaves)
            or empty_field(),
            fisher_key=models.key_data(seed),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        model, batch = models.model_and_batch(_NAME, params, extra_args)
        leaves, treedef = jax.tree.flatten(updates)
        check_floating(_NAME, leaves)
        step = jnp.asarray(optax.safe_increment(state.fisher_step))
        if not leaves:
            return updates, state._replace(fisher_step=step)

        moving, resting = state._replace(first_moment=()), state.first_moment
        due = (state.fisher_step % jnp.asarray(every, jnp.int32) == 0) | (state.refreshes == 0)
        moving = jax.lax.cond(
            due,
            refreshed,
            lambda old, *_: old,
            moving,
            model,
            batch,
            models.key_of_step(state.fisher_key, state.fisher_step),
            updates,
        )
        moment, finite = usable_leaves(leaves)
        if b1 is not None:
            decay = jnp.asarray(b1, jnp.float32)
            before = treedef.flatten_up_to(resting)
            moment = [
                jnp.where(ok, decay * m + (1 - decay) * g, m)
                for ok, m, g in zip(finite, before, moment, strict=True)
            ]
            resting = treedef.unflatten(moment)
            correction = bias_correction(decay, step)
            moment = [m / correction for m in moment]
        out = reduced(moving, moment, gains(moving))
        if not unit_gain:
            out = [u / moving.rho for u in out]
        out = [given_back(u, ok, g) for ok, u, g in zip(finite, out, leaves, strict=True)]
        new = moving._replace(fisher_step=step, first_moment=resting)
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads: Any, state: Any) -> Any:
        leaves, treedef = jax.tree.flatten(grads)
        check_floating(_NAME, leaves)
        rows = [jnp.asarray(g, jnp.float32) for g in leaves]
        if not rows:
            return grads
        # 1 - sqrt(rho / (l + rho)), without cancellation for a small l.
        left = jnp.sqrt(state.rho / (state.eigenvalues + state.rho))
        rows = reduced(state, rows, gains(state) / (1 + left))
        if not unit_gain:
            rows = [row * jax.lax.rsqrt(state.rho) for row in rows]
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric, keeps_scale=False)


def gains(state: ScaleByLowRankFisherState) -> jax.Array:
    """l / (l + rho), [rank]; zero before the first refresh and where there is no eigenpair."""
    values = state.eigenvalues
    return jnp.where(values > 0, values / (values + state.rho), 0.0)


def reduced(
    state: ScaleByLowRankFisherState, leaves: list[jax.Array], shares: jax.Array
) -> list[jax.Array]:
    """A vector minus the given shares of its components along the eigenvectors."""
    zeros = jnp.zeros([len(shares)], jnp.float32)
    heights = coefficients(state.eigenvectors, tuple(leaves), zeros)
    taken = combination(shares * heights, state.eigenvectors)
    return [x - y for x, y in zip(leaves, taken, strict=True)]


def rounding_error(params: Any) -> float:
    """Ritz values below this share of the largest one are rounding errors of products."""
    # The operator rounds its products to the parameters' precision. bfloat16's eps is 2^-7, and
    # rounding left values of up to a sixth of it. A larger cut would drop curvature.
    own = max(float(jnp.finfo(jnp.result_type(p)).eps) for p in jax.tree.leaves(params))
    return max(own, 32 * float(jnp.finfo(jnp.float32).eps))


def top_ritz_pairs(
    matrix: jax.Array, rank: int, rounding: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(largest eigenvalues, whether each is kept, eigenvectors as rows) of a projected operator."""
    # An ensemble under `jax.vmap` decomposes one by one: see `over_matrices`.
    values, vectors = eigh(matrix)
    top = jnp.flip(values)[:rank]
    kept = top > rounding * jnp.max(top)
    return top, kept, jnp.where(kept[:, None], jnp.flip(vectors, 1)[:, :rank].T, 0.0)
