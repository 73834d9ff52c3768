"""Building blocks for your own probe or preconditioner.

- Inner products of pytrees, leaf by leaf: :func:`vdot`, :func:`sum_squares`.
- Products with a curvature operator: :func:`krylov_space` from a :func:`random_block`; an
  ``Operator`` is ``(params, batch) -> matvec``, as :mod:`fgo_jax.curvature` makes them.
- Numbers of a known spectrum: :func:`participation_ratio`, :func:`energy_rank`,
  :func:`entropy_rank`.
- The same of a covariance that is known from few samples only: :func:`uncentred_sums`,
  :func:`centred_sums` and their error, :func:`jackknife_log_ratio`.
- A short random projection of a pytree: :func:`sketch_tree`.

All of it is pure JAX and keeps sharded leaves in place.
"""

from fgo_jax.linalg.krylov import krylov_space, random_block
from fgo_jax.linalg.operator import Operator
from fgo_jax.linalg.sketch import sketch_tree
from fgo_jax.linalg.sums import (
    centred_sums,
    energy_rank,
    entropy_rank,
    jackknife_log_ratio,
    participation_ratio,
    uncentred_sums,
)
from fgo_jax.linalg.trees import sum_squares, vdot

__all__ = [
    "Operator",
    "centred_sums",
    "energy_rank",
    "entropy_rank",
    "jackknife_log_ratio",
    "krylov_space",
    "participation_ratio",
    "random_block",
    "sketch_tree",
    "sum_squares",
    "uncentred_sums",
    "vdot",
]
