"""Natural-gradient transformations."""

from fgo_jax.precondition.fismo import scale_by_fismo
from fgo_jax.precondition.graft import graft
from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher
from fgo_jax.precondition.preconditioner import Preconditioner

__all__ = ["Preconditioner", "graft", "scale_by_fismo", "scale_by_kronecker_fisher"]
