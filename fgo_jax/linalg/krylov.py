"""The Lanczos process on pytrees, and what its Ritz values stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg.trees import vdot

# A residual below this share of the largest product is rounding, not a direction.
_BREAKDOWN = 32 * float(jnp.finfo(jnp.float32).eps)
# Residual bound, relative to the Ritz value, of one that counts as an eigenvalue. Loose
# bounds would take a tight cluster for one eigenvalue.
_CONVERGED = 1e-3
_EXACT = jax.lax.Precision.HIGHEST  # inner products that orthogonality rests on


class Krylov(NamedTuple):
    """A basis Q of a Krylov space and T = Q A Q^T; steps that are not valid are 0."""

    matrix: jax.Array  # [steps, steps], float32; T, banded and symmetric
    coupling: jax.Array  # [block, steps], float32; of the residual to the space
    valid: jax.Array  # [steps], bool; False where the space was exhausted
    basis: Any  # leaves [steps, *leaf.shape], float32; rows q_1 ... q_steps
    residual: Any  # leaves [block, *leaf.shape], float32; the next vectors


class EigenvalueCounts(NamedTuple):
    """Ritz values, descending along the steps, and what they stand for."""

    ritz: jax.Array  # [starts, steps], float32; negative ones, which are rounding, set to 0
    counts: jax.Array  # [starts, steps], float32; number of eigenvalues, in sum d
    single: jax.Array  # [starts, steps], bool; the same in every start
    converged: jax.Array  # [starts, steps], bool


def count_eigenvalues(
    matrices: jax.Array, couplings: jax.Array, dimension: float
) -> EigenvalueCounts:
    r"""How many of an operator's eigenvalues each Ritz value stands for.

    A Ritz value :math:`\theta_j` with eigenvector s of T has converged where the residual
    :math:`\|B s\| \ll \theta_j`, B being the coupling, and has the quadrature weight
    :math:`\tau_j = \frac1b \sum_{i \le b} s_i^2` in a block of b. The top ones that have
    converged in every start, to the same values, count one each, unless they may stand for
    more: a block shows at most b copies of a multiple eigenvalue, so fewer than b equal
    ones are all there are, and b of them are if their weights, times the dimension, are
    not beyond four sigma for single eigenvalues. The rest share what remains of the
    dimension by their weights.

    Args:
      matrices: [starts, steps, steps], from :func:`krylov_space`.
      couplings: [starts, block, steps], from the same.
      dimension: the number of all eigenvalues, d.

    Returns:
      an :class:`EigenvalueCounts`.

    Example:
      >>> import jax.numpy as jnp
      >>> matrices, couplings = jnp.diag(jnp.array([3.0, 0.0]))[None], jnp.zeros((1, 1, 2))
      >>> count_eigenvalues(matrices, couplings, 50).counts.round().tolist()  # 3 times I
      [[50.0, 0.0]]

    Source: Golub and Meurant (2010), chapters 3 and 4 (quadrature, error bound).
    """
    starts, block = couplings.shape[:2]
    # One after the other: batched decompositions can wait for each other for ever on CPU.
    values, vectors = jax.lax.map(lambda matrix: tuple(jnp.linalg.eigh(matrix)), matrices)
    ritz = jnp.maximum(jnp.flip(values, 1), 0.0)
    vectors = jnp.flip(vectors, 2)
    weights = jnp.sum(jnp.square(vectors[:, :block]), axis=1)
    # In less than b dimensions some vectors of the block are zero and hold no weight.
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), _BREAKDOWN)
    residuals = jnp.sqrt(jnp.sum(jnp.square(jnp.matmul(couplings, vectors)), axis=1))
    converged = (residuals <= _CONVERGED * ritz) & (ritz > 0.0)

    lowest, highest = jnp.min(ritz, axis=0), jnp.max(ritz, axis=0)
    common = jnp.all(converged, axis=0) & (highest - lowest <= _CONVERGED * highest)
    top = jnp.cumprod(common.astype(jnp.int32)) == 1
    gaps = jnp.abs(highest[:, None] - highest[None, :])
    equal = (gaps <= _CONVERGED * highest[:, None]) & top[:, None] & top[None, :]
    copies = jnp.maximum(jnp.sum(equal.astype(jnp.float32), axis=1), 1.0)
    shares = jnp.where(equal, jnp.mean(weights, axis=0)[None, :], 0.0)
    weight = dimension * jnp.sum(shares, axis=1) / copies
    single = top & ((copies < block) | (weight <= _single_limit(starts * block * copies)))
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


def _single_limit(draws: jax.Array) -> jax.Array:
    """Four-sigma bound on the mean of `draws` chi-square draws (Wilson and Hilferty).

    At three, one of a handful of outliers would be taken for a multiple one, with seven
    times its weight, a few times in a run of some hundred measurements.
    """
    spread = 2 / (9 * draws)
    return (1 - spread + 4 * spread**0.5) ** 3


def krylov_space(matvec: Callable[[Any], Any], block: Any, num_steps: int) -> Krylov:
    r"""Runs the block Lanczos process, vector by vector, with full reorthogonalisation.

    .. math:: A Q^T = Q^T T + R^T B, \qquad Q Q^T = I

    From a block of one it is the Lanczos process and T tridiagonal; a block of b gives a
    band of b, and sees b copies of a multiple eigenvalue. Every new vector is
    orthogonalised against the whole basis twice: once leaves a component that grows into
    copies of eigenvalues already found. Where a residual is rounding (relative to the
    largest product so far) that direction is exhausted: the vector is set to zero and the
    band gets narrower, at one wasted product a step.

    Args:
      matvec: symmetric map of a pytree to one of the same shapes.
      block: start vectors, a pytree with a leading axis of b; their lengths do not matter.
      num_steps: m, products taken, at least b.

    Returns:
      a :class:`Krylov`, in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> result = krylov_space(lambda v: 2.0 * v, jnp.ones((1, 3)), num_steps=2)
      >>> result.matrix.round(4).tolist(), result.valid.tolist()
      ([[2.0, 0.0], [0.0, 0.0]], [True, False])

    Source: Golub and Meurant (2010), chapter 4; Ruhe (1979), on bands; Parlett (1998),
    "The symmetric eigenvalue problem", section 6.9, on "twice is enough".
    """
    block = optax.tree.cast(block, jnp.float32)
    width = jax.tree.leaves(block)[0].shape[0]
    rows = num_steps + width
    zeros = jnp.zeros([rows], jnp.float32)
    empty = jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), jnp.float32), block)

    def append(basis: Any, vector: Any, slot: jax.Array, largest: jax.Array) -> tuple:
        """Puts what is new in a vector into a slot; slots not yet filled are zero.

        Returns the basis, the vector's coefficients in it, and the longest vector so far.
        """
        first = coefficients(basis, vector, zeros)
        rest = optax.tree.sub(vector, combination(first, basis))
        second = coefficients(basis, rest, zeros)
        rest = optax.tree.sub(rest, combination(second, basis))
        length = jnp.sqrt(vdot(rest, rest))
        column = (first + second).at[slot].set(length)
        # The vector's own length, by Pythagoras: no other pass over it.
        largest = jnp.maximum(largest, jnp.sqrt(jnp.sum(jnp.square(column))))
        length = jnp.where(length > _BREAKDOWN * largest, length, 0.0)
        return put(basis, rest, slot, length), column.at[slot].set(length), largest

    def put(basis: Any, vector: Any, slot: Any, length: jax.Array) -> Any:
        scale = jnp.where(length > 0.0, 1.0 / jnp.where(length > 0.0, length, 1.0), 0.0)
        return jax.tree.map(
            lambda all_rows, leaf: jax.lax.dynamic_update_index_in_dim(
                all_rows, scale * leaf, slot, 0
            ),
            basis,
            vector,
        )

    def begin(slot: jax.Array, basis: Any) -> Any:
        vector = jax.tree.map(lambda leaf: leaf[slot], block)
        return append(basis, vector, slot, jnp.float32(0.0))[0]

    def step(k: jax.Array, carry: tuple) -> tuple:
        basis, columns, largest = carry
        vector = jax.tree.map(lambda all_rows: all_rows[k], basis)
        product = optax.tree.cast(matvec(vector), jnp.float32)
        basis, column, largest = append(basis, product, k + width, largest)
        return basis, columns.at[k].set(column), largest

    start = jax.tree.map(lambda leaf: leaf[0], block)  # there is nothing to clear it of
    basis = put(empty, start, 0, jnp.sqrt(vdot(start, start)))
    basis = jax.lax.fori_loop(1, width, begin, basis)
    columns = jnp.zeros([num_steps, rows], jnp.float32)
    basis, columns, _ = jax.lax.fori_loop(0, num_steps, step, (basis, columns, jnp.float32(0.0)))
    inner = jax.tree.map(lambda all_rows: all_rows[:num_steps], basis)
    lengths = sum(
        jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(inner)
    )
    matrix = columns[:, :num_steps]
    return Krylov(
        matrix=(matrix + matrix.T) / 2,
        coupling=columns[:, num_steps:].T,
        valid=jnp.asarray(lengths) > 0.5,
        basis=inner,
        residual=jax.tree.map(lambda all_rows: all_rows[num_steps:], basis),
    )


def random_block(key: jax.Array, params: Any, size: int) -> Any:
    """Gaussian vectors shaped like the parameters, with a leading axis of `size`."""
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct((size, *p.shape), jnp.float32), params)
    return optax.tree.random_like(key, shapes, jax.random.normal, jnp.float32)


def coefficients(basis: Any, vector: Any, zeros: jax.Array) -> jax.Array:
    """Q v, [steps], leaf by leaf: no leaf is flattened, so none is gathered."""

    def products(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        axes = (tuple(range(1, rows.ndim)), tuple(range(leaf.ndim)))
        return jax.lax.dot_general(rows, leaf, (axes, ((), ())), precision=_EXACT)

    return jax.tree.reduce(jnp.add, jax.tree.map(products, basis, vector), zeros)


def combination(coefficients: jax.Array, basis: Any) -> Any:
    """Q^T c, shaped like one vector; or, of c [k, steps], like k of them."""
    return jax.tree.map(
        lambda rows: jnp.tensordot(coefficients, rows, axes=(-1, 0), precision=_EXACT), basis
    )
