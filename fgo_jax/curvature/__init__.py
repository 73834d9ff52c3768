"""Curvature as an operator: `(params, batch) -> (vector -> vector)`."""

from fgo_jax.curvature.empirical_fisher import empirical_fisher
from fgo_jax.curvature.friction import friction
from fgo_jax.curvature.ggn import ggn
from fgo_jax.curvature.hessian import hessian
from fgo_jax.curvature.losses import example_losses
from fgo_jax.curvature.sampled_fisher import sampled_fisher

__all__ = [
    "empirical_fisher",
    "example_losses",
    "friction",
    "ggn",
    "hessian",
    "sampled_fisher",
]
