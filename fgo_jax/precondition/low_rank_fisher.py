"""A gradient damped along the top eigenvectors of a curvature operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import core

from fgo_jax import _checks
from fgo_jax.linalg.krylov import coefficients, combination, krylov_space, random_block
from fgo_jax.linalg.operator import Operator, bind
from fgo_jax.precondition.shared import leaves as leaf_checks
from fgo_jax.precondition.shared import model as models
from fgo_jax.precondition.shared.preconditioner import Preconditioner

_NAME = "scale_by_low_rank_fisher"
# Ritz values below this share of the largest one are rounding of float32 products.
_ROUNDING = 32 * float(jnp.finfo(jnp.float32).eps)


class ScaleByLowRankFisherState(NamedTuple):
    """State of `scale_by_low_rank_fisher`, grouped by how often it changes."""

    fisher_step: jax.Array  # shape=(), dtype=jnp.int32.
    first_moment: Any  # like params, dtype=jnp.float32; () if b1 is None.
    # What follows changes at a refresh.
    refreshes: jax.Array  # shape=(), dtype=jnp.int32; those taken over. None yet: P is I.
    eigenvalues: jax.Array  # shape=(rank,), dtype=jnp.float32; falling, zero where there is none.
    rho: jax.Array  # shape=(), dtype=jnp.float32; the eigenvalue of all the rest.
    # Leaf by leaf; `optax.tree.map_params` treats it as one value that is not parameter-shaped.
    eigenvectors: Any  # tuple, shape=(rank, *leaf.shape), dtype=jnp.float32; orthonormal rows.
    fisher_key: jax.Array  # shape=(2,), dtype=jnp.uint32; never changes.


def scale_by_low_rank_fisher(
    operator: Operator,
    rank: int = 8,
    num_steps: int = 16,
    every: jax.typing.ArrayLike = 100,
    damping: jax.typing.ArrayLike = 1.0,
    b1: jax.typing.ArrayLike | None = 0.9,
    unit_gain: bool = True,
    block_size: int = 1,
    axis_name: str | None = None,
    seed: int = 0,
) -> Preconditioner:
    r"""Damps gradients along the top eigenvectors of any curvature operator.

    Every ``every`` steps, the first included, ``num_steps`` of a Lanczos process at the current
    parameters and batch give the ``rank`` largest Ritz pairs l_i, u_i of the operator. The
    rest of its spectrum is taken for one eigenvalue rho, set by the smallest one kept:

        P = sum_i l_i u_i u_i^T + rho I,        rho = damping * min {l_i > 0},
        M <- b1 M + (1 - b1) G,                 update = rho P^-1 M / (1 - b1^t)
                                                       = M' - sum_i l_i / (l_i + rho) u_i u_i^T M'

    with M' = M / (1 - b1^t). No direction is projected out: along u_i the gradient keeps the share
    rho / (l_i + rho), and the curvature there, times that share, is below rho; no eigenvalue left
    out should exceed min l_i either. So the largest one that a learning rate has to respect falls
    from l_1 to about min l_i, and the rate may rise by that ratio. With `unit_gain` the rest of the
    gradient passes as it is: a rate has the unit and the meaning of SGD's. Without it the update is
    P^-1 M', a damped natural-gradient step, for rates up to about one.

    A refresh of which an eigenvalue is not finite, or that finds no positive one, is not taken
    over: the last one stays, and before the first one, P = I, it is tried again at every step. An
    operator of lower rank has the rest of its eigenvalues zero and the smallest positive one in
    rho. Negative eigenvalues (of a Hessian) count as zero. A leaf with a gradient that is not
    finite gets a zero update and enters nothing, until it is finite again.

    The Lanczos process reorthogonalises fully. From a block of one it sees one copy of an
    eigenvalue that is repeated exactly; a block of b sees b of them.

    Memory: 4 * rank bytes per parameter for the eigenvectors, sharded as their leaf, and 4 for M;
    during a refresh another 4 * (num_steps + block_size + rank). A step reads the eigenvectors
    twice; a refresh costs num_steps + block_size products, each about two gradients of the batch.
    To refresh on a part of it, let the operator take that:
    ``lambda params, batch: fisher(params, batch[:64])``. Meshes need automatic axes.

    Args:
      operator: ``(params, batch) -> matvec``, as :mod:`fgo_jax.curvature` makes them; symmetric.
        One that requires a keyword ``key`` gets a fresh one at every refresh.
      rank: eigenpairs to damp.
      num_steps: of the Lanczos process, at least ``rank``; twice that resolves them well.
      every: steps from one refresh to the next.
      damping: rho relative to the smallest eigenvalue kept, > 0.
      b1: decay rate of the first moment; None keeps no moment.
      unit_gain: whether rho P^-1, or P^-1 itself.
      block_size: start vectors of the Lanczos process, at most ``num_steps``.
      axis_name: inside `jax.pmap` or `jax.shard_map`: the axis over which the batch is split and
        curvature is averaged. Gradients are expected to be averaged already.
      seed: of the key for start vectors and draws.

    Returns:
      A `Preconditioner`, whose update requires ``params`` and the keyword ``batch``, and under
      `optax.masked` or `optax.partition` also ``probe_params``, the whole tree; the operator is
      then restricted to the leaves at hand. Its `metric` multiplies by (rho P^-1)^(1/2), or
      P^(-1/2), and gives float32; before the first refresh it is the identity.

    Raises:
      ValueError: an argument out of its range; a traced one that shapes the state; a leaf that is
        complex or not floating-point.
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

    Sources: Erdogdu and Montanari, NewSamp, 2015 (arXiv 1508.02810), who give all of the rest one
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
    for name, value in (("unit_gain", unit_gain), ("seed", seed)):
        _checks.static(name, value)

    def gains(state):
        """l / (l + rho): zero before the first refresh, and for pairs that there are not."""
        values = state.eigenvalues
        return jnp.where(values > 0, values / (values + state.rho), 0.0)

    def along(state, leaves, shares):
        """Takes the shares of its components along the eigenvectors off a vector."""
        heights = coefficients(state.eigenvectors, tuple(leaves), jnp.zeros([rank], jnp.float32))
        taken = combination(shares * heights, state.eigenvectors)
        return [x - y for x, y in zip(leaves, taken, strict=True)]

    def refreshed(old, model, batch, key, updates):
        inner = models.restrict(model, updates)
        matvec = bind(operator, model, batch, key, models.device_number(axis_name))

        def product(vector):
            whole = matvec(models.lift(vector, model))
            return models.mean_over(axis_name, models.restrict(whole, updates))

        # From the range of the operator, one power step nearer to its top: with no part in the
        # null space, where a Ritz vector that has not converged would damp what has no curvature.
        block = jax.lax.map(product, random_block(key, inner, block_size))
        space = krylov_space(product, block, num_steps)
        values, vectors = jnp.linalg.eigh(space.matrix)
        top = jnp.flip(values)[:rank]
        kept = top > _ROUNDING * jnp.max(top)
        smallest = jnp.min(jnp.where(kept, top, jnp.inf))
        rows = jnp.where(kept[:, None], jnp.flip(vectors, 1)[:, :rank].T, 0.0)
        new = old._replace(
            refreshes=old.refreshes + 1,
            eigenvalues=jnp.where(kept, top, 0.0),
            rho=jnp.asarray(damping, jnp.float32) * smallest,
            eigenvectors=tuple(
                # True of every number. What is elementwise in a leaf is sharded like it.
                jnp.where((p == p)[None], rows, 0.0)
                for p, rows in zip(
                    jax.tree.leaves(inner),
                    jax.tree.leaves(combination(rows, space.basis)),
                    strict=True,
                )
            ),
        )
        # The largest of numbers that are not finite is none either.
        good = jnp.isfinite(jnp.max(top)) & (jnp.max(top) > 0) & jnp.isfinite(new.rho)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    def init(params):
        leaves = jax.tree.leaves(params)
        leaf_checks.check_floating(_NAME, leaves)
        return ScaleByLowRankFisherState(
            fisher_step=jnp.zeros([], jnp.int32),
            first_moment=() if b1 is None else optax.tree.zeros_like(params, dtype=jnp.float32),
            refreshes=jnp.zeros([], jnp.int32),
            eigenvalues=jnp.zeros([rank], jnp.float32),
            rho=jnp.ones([], jnp.float32),
            # As in scale_by_kronecker_fisher: `map_params` wants one array and no empty tuple.
            eigenvectors=tuple(_rows_like(p, rank) for p in leaves)
            or jnp.zeros([rank, 0], jnp.float32),
            fisher_key=models.key_data(seed),
        )

    def update(updates, state, params=None, **extra_args):
        model, batch = models.model_and_batch(_NAME, params, extra_args)
        leaves, treedef = jax.tree.flatten(updates)
        leaf_checks.check_floating(_NAME, leaves)
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
        moment, finite = leaf_checks.finite_leaves(leaves)
        if b1 is not None:
            decay = jnp.asarray(b1, jnp.float32)
            before = treedef.flatten_up_to(resting)
            moment = [
                jnp.where(ok, decay * m + (1 - decay) * g, m)
                for ok, m, g in zip(finite, before, moment, strict=True)
            ]
            resting = treedef.unflatten(moment)
            correction = 1 - decay ** step.astype(jnp.float32)
            moment = [m / correction for m in moment]
        out = along(moving, moment, gains(moving))
        if not unit_gain:
            out = [u / moving.rho for u in out]
        out = [
            jnp.where(ok, u, 0.0).astype(jnp.result_type(g))
            for ok, u, g in zip(finite, out, leaves, strict=True)
        ]
        new = moving._replace(fisher_step=step, first_moment=resting)
        return treedef.unflatten(out), optax.tree.cast_like(new, state)

    def metric(grads, state):
        leaves, treedef = jax.tree.flatten(grads)
        leaf_checks.check_floating(_NAME, leaves)
        rows = [jnp.asarray(g, jnp.float32) for g in leaves]
        if not rows:
            return grads
        # 1 - sqrt(rho / (l + rho)), without the cancellation for a small l.
        left = jnp.sqrt(state.rho / (state.eigenvalues + state.rho))
        rows = along(state, rows, gains(state) / (1 + left))
        if not unit_gain:
            rows = [row * jax.lax.rsqrt(state.rho) for row in rows]
        return treedef.unflatten(rows)

    return Preconditioner(init, update, metric, keeps_scale=False)


def _rows_like(leaf: Any, count: int) -> jax.Array:
    """[count, *leaf.shape], zeros in float32, each row sharded as the leaf."""
    sharding = None if isinstance(leaf, core.Tracer) else getattr(leaf, "sharding", None)
    device = None
    if isinstance(sharding, jax.sharding.NamedSharding):
        spec = jax.sharding.PartitionSpec(None, *sharding.spec)
        device = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jnp.zeros((count, *jnp.shape(leaf)), jnp.float32, device=device)
