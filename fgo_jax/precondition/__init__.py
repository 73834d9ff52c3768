"""Natural-gradient transformations."""

from fgo_jax.precondition.kfac import kfac_layers, scale_by_kfac
from fgo_jax.precondition.kronecker_fisher import scale_by_kronecker_fisher
from fgo_jax.precondition.preconditioner import Preconditioner

__all__ = ["Preconditioner", "kfac_layers", "scale_by_kfac", "scale_by_kronecker_fisher"]
