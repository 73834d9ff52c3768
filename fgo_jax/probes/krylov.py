"""The Lanczos process on pytrees, and what its Ritz values stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.probes.operator import vdot

# A residual below this share of the largest product is rounding, not a direction.
_BREAKDOWN = 32 * float(jnp.finfo(jnp.float32).eps)
# Residual bound, relative to the Ritz value, of one that counts as an eigenvalue. Loose
# bounds would take a tight cluster for one eigenvalue.
_CONVERGED = 1e-3
_EXACT = jax.lax.Precision.HIGHEST  # inner products that orthogonality rests on


class Tridiagonal(NamedTuple):
    """A Krylov basis Q and the tridiagonal T = Q^T A Q; steps that are not valid are 0."""

    alphas: jax.Array  # [steps], float32; diagonal of T
    betas: jax.Array  # [steps], float32; off-diagonal of T, then the last residual's norm
    valid: jax.Array  # [steps], bool; False from a breakdown on
    basis: Any  # leaves [steps, *leaf.shape], float32; rows q_1 ... q_steps
    residual: Any  # leaves [*leaf.shape], float32; q_{steps + 1}


class EigenvalueCounts(NamedTuple):
    """Ritz values, descending along the steps, and what they stand for."""

    ritz: jax.Array  # [starts, steps], float32; negative ones, which are rounding, set to 0
    counts: jax.Array  # [starts, steps], float32; number of eigenvalues, in sum d
    single: jax.Array  # [starts, steps], bool; the same in every start
    converged: jax.Array  # [starts, steps], bool


def count_eigenvalues(alphas: jax.Array, betas: jax.Array, dimension: float) -> EigenvalueCounts:
    r"""How many of an operator's eigenvalues each Ritz value stands for.

    A Ritz value has converged where :math:`|\beta_m s_{mj}| \ll \theta_j`, with s its
    eigenvector of T. The top ones that have converged in every start, to the same values,
    count one each, unless their mean weight times the dimension is beyond four sigma for
    a single eigenvalue. The rest share what remains of the dimension by their quadrature
    weights :math:`s_{1j}^2`.

    Args:
      alphas, betas: [starts, steps], from :func:`tridiagonalise`.
      dimension: the number of all eigenvalues, d.

    Returns:
      an :class:`EigenvalueCounts`.

    Example:
      >>> import jax.numpy as jnp
      >>> alphas, betas = jnp.array([[3.0, 0.0]]), jnp.zeros((1, 2))
      >>> count_eigenvalues(alphas, betas, dimension=50).counts.round().tolist()  # 3 times I
      [[50.0, 0.0]]

    Source: Golub and Meurant (2010), chapters 3 and 4 (quadrature, error bound).
    """
    starts = alphas.shape[0]
    # One after the other: batched decompositions can wait for each other for ever on CPU.
    values, vectors = jax.lax.map(lambda pair: _eigh_tridiagonal(*pair), (alphas, betas))
    ritz = jnp.maximum(jnp.flip(values, 1), 0.0)
    vectors = jnp.flip(vectors, 2)
    weights = jnp.square(vectors[:, 0])
    converged = (jnp.abs(betas[:, -1:] * vectors[:, -1]) <= _CONVERGED * ritz) & (ritz > 0.0)

    lowest, highest = jnp.min(ritz, axis=0), jnp.max(ritz, axis=0)
    common = jnp.all(converged, axis=0) & (highest - lowest <= _CONVERGED * highest)
    top = jnp.cumprod(common.astype(jnp.int32)) == 1
    single = top & (dimension * jnp.mean(weights, axis=0) <= _single_limit(starts))
    # All weight on single values, yet dimensions left over: some of them are multiple.
    left = jnp.sum(jnp.where(single, 0.0, weights), axis=1)
    complete = jnp.sum(single.astype(jnp.float32)) >= dimension
    single = single & (jnp.all(left > _BREAKDOWN) | complete)

    shares = jnp.where(single, 0.0, weights)
    left = jnp.sum(shares, axis=1, keepdims=True)
    remaining = dimension - jnp.sum(single.astype(jnp.float32))
    shares = remaining * shares / jnp.where(left > 0.0, left, 1.0)
    single = jnp.broadcast_to(single, ritz.shape)
    return EigenvalueCounts(ritz, jnp.where(single, 1.0, shares), single, converged)


def _eigh_tridiagonal(alphas: jax.Array, betas: jax.Array) -> tuple[jax.Array, jax.Array]:
    off = jnp.diag(betas[:-1], 1)
    return tuple(jnp.linalg.eigh(jnp.diag(alphas) + off + off.T))


def _single_limit(starts: int) -> float:
    """Four-sigma bound on the mean of `starts` chi-square draws (Wilson and Hilferty).

    At three, one of a handful of outliers would be taken for a multiple one, with seven
    times its weight, a few times in a run of some hundred measurements.
    """
    spread = 2 / (9 * starts)
    return (1 - spread + 4 * spread**0.5) ** 3


def tridiagonalise(matvec: Callable[[Any], Any], start: Any, num_steps: int) -> Tridiagonal:
    r"""Runs the Lanczos process with full reorthogonalisation.

    .. math:: A Q^T = Q^T T + \beta_m q_{m+1} e_m^T, \qquad Q Q^T = I

    Every new vector is orthogonalised against the whole basis twice: once leaves a
    component that grows into copies of eigenvalues already found. Where the residual is
    rounding (relative to the largest product so far) the Krylov space is exhausted: that
    beta is set to zero, so T splits, and the remaining steps are zero and not valid.

    Args:
      matvec: symmetric map of a pytree to one of the same shapes.
      start: pytree, not zero; its length does not matter.
      num_steps: m, products taken.

    Returns:
      a :class:`Tridiagonal`, in float32; ``betas[k]`` joins steps k and k + 1.

    Example:
      >>> import jax.numpy as jnp
      >>> result = tridiagonalise(lambda v: 2.0 * v, jnp.ones(3), num_steps=2)
      >>> result.alphas.round(4).tolist(), result.valid.tolist()
      ([2.0, 0.0], [True, False])

    Source: Golub and Meurant (2010), chapter 4; Parlett (1998), "The symmetric eigenvalue
    problem", section 6.9, on "twice is enough".
    """
    start = optax.tree.cast(start, jnp.float32)
    norm = jnp.sqrt(vdot(start, start))
    running = norm > 0.0
    vector = _scale(jnp.where(running, 1.0 / jnp.where(running, norm, 1.0), 0.0), start)
    empty = jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape), jnp.float32), start)
    zeros = jnp.zeros([num_steps], jnp.float32)

    def step(k: jax.Array, carry: tuple) -> tuple:
        result, largest, running = carry
        basis = jax.tree.map(
            lambda rows, row: jax.lax.dynamic_update_index_in_dim(rows, row, k, 0),
            result.basis,
            result.residual,
        )
        product = optax.tree.cast(matvec(result.residual), jnp.float32)
        largest = jnp.maximum(largest, jnp.sqrt(vdot(product, product)))
        # Rows beyond k are zero, so the whole basis serves without a mask.
        first = _coefficients(basis, product, zeros)
        rest = optax.tree.sub(product, _combination(first, basis))
        second = _coefficients(basis, rest, zeros)
        rest = optax.tree.sub(rest, _combination(second, basis))
        beta = jnp.sqrt(vdot(rest, rest))
        onward = running & (beta > _BREAKDOWN * largest)
        beta = jnp.where(onward, beta, 0.0)
        result = Tridiagonal(
            alphas=result.alphas.at[k].set(first[k] + second[k]),
            betas=result.betas.at[k].set(beta),
            valid=result.valid.at[k].set(running),
            basis=basis,
            residual=_scale(jnp.where(onward, 1.0 / jnp.where(onward, beta, 1.0), 0.0), rest),
        )
        return result, largest, onward

    initial = Tridiagonal(zeros, zeros, zeros > 0.0, empty, vector)
    result, _, _ = jax.lax.fori_loop(0, num_steps, step, (initial, jnp.float32(0.0), running))
    return result


def _coefficients(basis: Any, vector: Any, zeros: jax.Array) -> jax.Array:
    """Q v, [steps], leaf by leaf: no leaf is flattened, so none is gathered."""

    def products(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        axes = (tuple(range(1, rows.ndim)), tuple(range(leaf.ndim)))
        return jnp.tensordot(rows, leaf, axes=axes, precision=_EXACT)

    return jax.tree.reduce(jnp.add, jax.tree.map(products, basis, vector), zeros)


def _combination(coefficients: jax.Array, basis: Any) -> Any:
    """Q^T c, shaped like one vector."""
    return jax.tree.map(
        lambda rows: jnp.tensordot(coefficients, rows, axes=(0, 0), precision=_EXACT), basis
    )


def _scale(factor: jax.Array, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: factor * leaf, tree)
