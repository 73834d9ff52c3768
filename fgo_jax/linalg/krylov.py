"""The Lanczos process on pytrees, and what its Ritz values stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax.linalg import mesh
from fgo_jax.linalg.decompositions import eigh
from fgo_jax.linalg.draws import drawn_like
from fgo_jax.linalg.rows import divided, unit_of
from fgo_jax.linalg.trees import vdot

# A residual below this share of the largest product is rounding.
_BREAKDOWN = 32 * float(jnp.finfo(jnp.float32).eps)
# A Ritz value counts as an eigenvalue if its residual is below this share of it. A looser
# bound would take a tight cluster for one eigenvalue.
_CONVERGED = 1e-3
_EXACT = jax.lax.Precision.HIGHEST  # inner products that orthogonality rests on


class Krylov(NamedTuple):
    """A basis Q of a Krylov space and T = Q A Q^T; both are 0 at steps that are not valid."""

    matrix: jax.Array  # [steps, steps], float32; T, banded and symmetric
    coupling: jax.Array  # [block, steps], float32; B, from the residual to the space
    valid: jax.Array  # [steps], bool; False where the space was exhausted
    basis: Any  # leaves [steps, *leaf.shape], float32; rows q_1 ... q_steps
    residual: Any  # leaves [block, *leaf.shape], float32; R, the next vectors


class EigenvalueCounts(NamedTuple):
    """Ritz values, descending along the steps, and how many eigenvalues each stands for."""

    ritz: jax.Array  # [starts, steps], float32; negative ones are rounding and set to 0
    counts: jax.Array  # [starts, steps], float32; number of eigenvalues; they sum to d
    single: jax.Array  # [starts, steps], bool; the same in every start
    converged: jax.Array  # [starts, steps], bool


def count_eigenvalues(
    matrices: jax.Array, couplings: jax.Array, dimension: float
) -> EigenvalueCounts:
    r"""How many eigenvalues of an operator each Ritz value stands for.

    Let s be the eigenvector of T for the Ritz value :math:`\theta_j`, and B the coupling. The
    Ritz value has converged where the residual :math:`\|B s\| \ll \theta_j`. In a block of b
    vectors its quadrature weight is :math:`\tau_j = \frac1b \sum_{i \le b} s_i^2`.

    The top Ritz values that have converged in every start, to the same values, count one
    each, unless they may stand for more. A block shows at most b copies of a multiple
    eigenvalue. So fewer than b equal Ritz values are all the copies. If there are b, they are
    all if their weights, times the dimension, are within four sigma of single eigenvalues.
    The other Ritz values share the remaining dimensions by their weights.

    Args:
      matrices: [starts, steps, steps], from :func:`krylov_space`.
      couplings: [starts, block, steps], from the same.
      dimension: d, the number of all eigenvalues.

    Returns:
      An :class:`EigenvalueCounts`.

    Example:
      >>> import jax.numpy as jnp
      >>> matrices, couplings = jnp.diag(jnp.array([3.0, 0.0]))[None], jnp.zeros((1, 1, 2))
      >>> count_eigenvalues(matrices, couplings, 50).counts.round().tolist()  # 3 times I
      [[50.0, 0.0]]

    Source: Golub and Meurant (2010), chapters 3 and 4 (quadrature, error bound).
    """
    starts, block = couplings.shape[:2]
    values, vectors = jax.lax.map(eigh, matrices)
    ritz = jnp.maximum(jnp.flip(values, 1), 0.0)
    vectors = jnp.flip(vectors, 2)
    weights = jnp.sum(jnp.square(vectors[:, :block]), axis=1)
    # In fewer than b dimensions some vectors of the block are zero and have no weight.
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
    # If all weight is on single values and dimensions are left over, some are multiple.
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

    At three sigma, a run of about a hundred measurements would mistake an outlier a few times for
    a multiple eigenvalue of seven times its weight.
    """
    spread = 2 / (9 * draws)
    return (1 - spread + 4 * spread**0.5) ** 3


def krylov_space(matvec: Callable[[Any], Any], block: Any, num_steps: int) -> Krylov:
    r"""Runs the block Lanczos process, vector by vector, with full reorthogonalisation.

    .. math:: A Q^T = Q^T T + R^T B, \qquad Q Q^T = I

    With a block of one vector T is tridiagonal. A block of b gives a band of width b, and
    sees b copies of a multiple eigenvalue. Every new vector is orthogonalised against the
    whole basis twice: once leaves a component that grows into copies of eigenvalues already
    found. A residual below the rounding of the largest product so far ends its direction:
    the vector is set to zero, the band gets narrower, and one product per step is wasted.

    Args:
      matvec: A, a symmetric map of a pytree to one of the same shapes.
      block: start vectors, a pytree with a leading axis of b. Their lengths do not matter.
      num_steps: m, the number of products, at least b.

    Returns:
      A named tuple in float32: ``matrix`` T [m, m]; ``coupling`` B [b, m]; ``valid`` [m],
      False where the space was exhausted; ``basis`` Q, leaves [m, *leaf.shape]; ``residual``
      R, leaves [b, *leaf.shape].

    Raises:
      Nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from fgo_jax.linalg import krylov_space
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

    def nothing(leaf: jax.Array) -> jax.Array:
        return mesh.placed_like(jnp.zeros((rows, *leaf.shape[1:]), jnp.float32), leaf)

    empty = jax.tree.map(nothing, block)

    def append(
        basis: Any, vector: Any, slot: jax.Array, largest: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Adds the part of a vector outside the basis at a slot; unfilled slots are zero.

        Returns the basis, the vector's coefficients in it, and the largest length so far.
        """
        first = coefficients(basis, vector, zeros)
        rest = optax.tree.sub(vector, combination(first, basis))
        second = coefficients(basis, rest, zeros)
        rest = optax.tree.sub(rest, combination(second, basis))
        length = jnp.sqrt(vdot(rest, rest))
        column = (first + second).at[slot].set(length)
        # The vector's own length, by Pythagoras, without another pass over it.
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

    def start(slot: Any) -> Any:
        vector = jax.tree.map(lambda leaf: leaf[slot], block)
        return divided(vector, unit_of(vector))

    def begin(slot: jax.Array, basis: Any) -> Any:
        return append(basis, start(slot), slot, jnp.float32(0.0))[0]

    def step(k: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        basis, columns, largest, unit = carry
        vector = jax.tree.map(lambda all_rows: all_rows[k], basis)
        product = optax.tree.cast(matvec(vector), jnp.float32)
        # The unit of the first product that is not zero, for all: squares stay within float32.
        unit = jnp.where(largest > 0.0, unit, unit_of(product))
        basis, column, largest = append(basis, divided(product, unit), k + width, largest)
        return basis, columns.at[k].set(column), largest, unit

    first = start(0)  # the basis is still empty
    basis = put(empty, first, 0, jnp.sqrt(vdot(first, first)))
    basis = jax.lax.fori_loop(1, width, begin, basis)
    columns = jnp.zeros([num_steps, rows], jnp.float32)
    carry = (basis, columns, jnp.float32(0.0), jnp.float32(1.0))
    basis, columns, _, unit = jax.lax.fori_loop(0, num_steps, step, carry)
    columns = columns * unit
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
    """Independent standard Gaussian vectors, to start :func:`krylov_space` from.

    Args:
      key: PRNG key.
      params: a pytree of arrays, of which only the shapes are read.
      size: b, the number of vectors.

    Returns:
      A pytree like ``params`` with leaves [b, *leaf.shape], float32.

    Raises:
      Nothing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fgo_jax.linalg import random_block
      >>> random_block(jax.random.key(0), {"w": jnp.ones((3, 4))}, 2)["w"].shape
      (2, 3, 4)

    Source: the definition above.
    """

    def rows(key: jax.Array, leaf: Any) -> jax.Array:
        return mesh.rows_like(jax.random.normal(key, (size, *leaf.shape), jnp.float32), leaf)

    return drawn_like(rows, key, params)


def coefficients(basis: Any, vector: Any, zeros: jax.Array) -> jax.Array:
    """Q v, [steps]. No leaf is flattened, so no sharded leaf is gathered."""

    def products(rows: jax.Array, leaf: jax.Array) -> jax.Array:
        axes = (tuple(range(1, rows.ndim)), tuple(range(leaf.ndim)))
        alone = mesh.replicated(leaf, 1)
        return jax.lax.dot_general(
            rows, leaf, (axes, ((), ())), precision=_EXACT, out_sharding=alone
        )

    return jax.tree.reduce(jnp.add, jax.tree.map(products, basis, vector), zeros)


def combination(coefficients: jax.Array, basis: Any) -> Any:
    """Q^T c, shaped like one vector; for c [k, steps], like k vectors."""
    return jax.tree.map(
        lambda rows: jnp.tensordot(coefficients, rows, axes=(-1, 0), precision=_EXACT), basis
    )
