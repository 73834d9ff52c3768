"""The Lanczos runs of an analysis: one for the eigenpairs, random ones for the rest."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax.analysis import quadrature
from fgo_jax.analysis.batches import Data, mean_product
from fgo_jax.analysis.progress import Advance
from fgo_jax.linalg import mesh, whole_blocks
from fgo_jax.linalg.krylov import Krylov, combination, krylov_space, random_block
from fgo_jax.linalg.operator import Operator
from fgo_jax.linalg.rows import divided, unit_of
from fgo_jax.linalg.trees import vdot
from fgo_jax.probes.probe import Estimate

# A Ritz pair whose residual is below this share of its value is taken exactly from then on. By
# Weyl's inequality the other eigenvalues move by no more than that.
CONVERGED = 1e-3


class Setting(NamedTuple):
    """What all Lanczos runs of one analysis share."""

    operator: Operator
    params: Any
    data: Data
    key: jax.Array  # for an operator that draws
    num_steps: int
    num_starts: int
    block_size: int
    top: int
    energy: float


class Analysis(NamedTuple):
    """The spectrum of the whole operator, or of the diagonal block of some leaves."""

    dimension: int
    main: quadrature.Ritz  # of the run that gives the eigenpairs
    vectors: Any  # leaves [keep, *leaf.shape]; its first Ritz vectors
    bulks: list[quadrature.Ritz]  # of the random runs
    rule: quadrature.Rule
    short: quadrature.Rule | None  # from two thirds of the steps; None for too few steps
    estimates: dict[str, Estimate]


def analyse(run: Setting, key: jax.Array, acting: set[int], advance: Advance) -> Analysis:
    """One run for the top eigenpairs, then random runs on what is left of the leaves `acting`.

    It calls `advance` with the products of each run that is done.
    """
    leaves, treedef = jax.tree.flatten(run.params)
    within = treedef.unflatten([jnp.float32(i in acting) for i in range(len(leaves))])
    dimension = sum(leaves[i].size for i in acting)
    keep = max(run.top, run.num_steps // 2)
    keys = jax.random.split(key, 1 + run.num_starts)

    def krylov(start_key: jax.Array, off: Any) -> Krylov:
        block = start_block(start_key, run.params, run.block_size)
        return _space(
            run.operator, run.num_steps, run.params, run.data, run.key, within, off, block
        )

    nothing = jax.tree.map(lambda p: whole_blocks.rows_of_zeros(p, keep), run.params)
    space = krylov(keys[0], nothing)
    del nothing
    main = quadrature.ritz_values(space.matrix, space.coupling, space.valid)
    advance(run.num_steps)
    converged = main.residuals <= CONVERGED * np.abs(main.values)
    converged[keep:] = False
    rows = np.zeros([keep, run.num_steps])
    rows[: len(main.values)] = main.coefficients[:keep]
    rows_off = np.append(converged, np.zeros(keep))[:keep]
    vectors, off = _ritz_vectors(space.basis, np.float32(rows), np.float32(rows_off))
    del space  # frees its basis: the next run needs the memory
    exact = main.values[converged]
    left, bulks, shorter = dimension - len(exact), [], []
    for start_key in keys[1:]:
        part = krylov(start_key, off)
        bulks.append(quadrature.ritz_values(part.matrix, part.coupling, part.valid))
        matrix, valid = np.asarray(part.matrix), np.asarray(part.valid)
        del part  # frees its basis before the next run
        advance(run.num_steps)
        shorter.append(quadrature.fewer_steps(bulks[-1], matrix, valid, run.block_size, left))
    rule = quadrature.combine(exact, bulks, dimension)
    cut = [ritz for ritz in shorter if ritz is not None]
    short = quadrature.combine(exact, cut, dimension) if len(cut) == len(bulks) else None
    estimates = quadrature.moments(rule, short, main.residuals[converged])
    estimates["energy_rank"] = quadrature.energy_rank(rule, short, run.energy)
    return Analysis(dimension, main, vectors, bulks, rule, short, estimates)


@functools.partial(jax.jit, static_argnums=2)
def start_block(key: jax.Array, params: Any, size: int) -> Any:
    """Random vectors, [size, *leaf.shape]; one program draws those of all runs."""
    return jax.tree.map(mesh.elementwise_rows, random_block(key, params, size), params)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=7)
def _space(
    operator: Operator,
    num_steps: int,
    params: Any,
    data: Data,
    draws: jax.Array,
    within: Any,
    off: Any,
    block: Any,
) -> Krylov:
    """A Krylov space of P A P, where P keeps the leaves `within` and removes the vectors `off`."""
    act = mean_product(operator, params, data, draws)

    def project(vector: Any) -> Any:
        vector = jax.tree.map(lambda on, leaf: on * leaf, within, vector)
        heights = jax.lax.map(lambda row: vdot(row, vector), off)
        return optax.tree.sub(vector, combination(heights, off))

    def matvec(vector: Any) -> Any:
        return project(act(project(vector)))

    return krylov_space(matvec, jax.lax.map(project, block), num_steps)


@jax.jit
def _ritz_vectors(basis: Any, rows: jax.Array, converged: jax.Array) -> tuple[Any, Any]:
    """The vectors of these coefficients, and the same with zeros for those not converged."""
    vectors = combination(rows, basis)
    return vectors, jax.tree.map(lambda leaf: jnp.einsum("k,k...->k...", converged, leaf), vectors)


@functools.partial(jax.jit, static_argnums=0)
def product_sizes(
    operator: Operator, params: Any, data: Data, draws: jax.Array, block: Any
) -> jax.Array:
    """[leaves], float32: the largest entry of A v in each leaf, for the first vector of a block."""
    vector = jax.tree.map(lambda leaf: leaf[0], block)
    image = mean_product(operator, params, data, draws)(vector)
    return jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(image)])


@functools.partial(jax.jit, static_argnums=0)
def residuals(
    operator: Operator, params: Any, data: Data, draws: jax.Array, values: jax.Array, vectors: Any
) -> jax.Array:
    """[k], float32: |A v - value v| of k pairs."""
    act = mean_product(operator, params, data, draws)

    def length(pair: tuple[jax.Array, Any]) -> jax.Array:
        value, vector = pair
        rest = jax.tree.map(lambda a, b: a - value * b, act(vector), vector)
        unit = unit_of(rest)  # the squares may leave float32
        rest = divided(rest, unit)
        return unit * jnp.sqrt(vdot(rest, rest))

    return jax.lax.map(length, (values, vectors))
