"""Natural-gradient transformations."""

from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher
from fgo_jax.precondition.preconditioner import Preconditioner

__all__ = ["Preconditioner", "scale_by_kronecker_fisher"]
