"""Linear algebra that probes, preconditioners and analysis share."""

from fgo_jax.linalg.krylov import krylov_space, random_block
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
    "centred_sums",
    "energy_rank",
    "entropy_rank",
    "jackknife_log_ratio",
    "krylov_space",
    "participation_ratio",
    "random_block",
    "sum_squares",
    "uncentred_sums",
    "vdot",
]
