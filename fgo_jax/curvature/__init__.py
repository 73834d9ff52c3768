"""Curvature as an operator: `(params, batch) -> (vector -> vector)`."""

from fgo_jax.curvature.ggn import ggn

__all__ = ["ggn"]
