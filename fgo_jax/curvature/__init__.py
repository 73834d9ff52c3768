"""Curvature as an operator: `(params, batch) -> (vector -> vector)`.

| operator | what it is | labels |
|---|---|---|
| `ggn` | generalised Gauss-Newton matrix; the Fisher for the named losses | none |
| `sampled_fisher` | a random estimate of the same | drawn from the model |
| `empirical_fisher` | second moment of the single-example gradients | the data's |
| `hessian` | Hessian of the loss; may be indefinite | the data's |

`example_losses` makes the losses that the last two take. `friction` is the quadratic form of
an operator along a direction.
"""

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
