"""Natural-gradient transformations."""

from fgo_jax.precondition.diagonal_fisher import scale_by_diagonal_fisher
from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher
from fgo_jax.precondition.low_rank_fisher import scale_by_low_rank_fisher
from fgo_jax.precondition.preconditioner import Preconditioner

__all__ = [
    "Preconditioner",
    "scale_by_diagonal_fisher",
    "scale_by_kronecker_fisher",
    "scale_by_low_rank_fisher",
]
