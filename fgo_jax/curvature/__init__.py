"""Curvature as an operator: `(params, batch) -> (vector -> vector)`.

| operator | what it is | labels |
|---|---|---|
| `ggn` | generalised Gauss-Newton matrix; the Fisher for the named losses | none |
| `sampled_fisher` | a random estimate of the same | drawn from the model |
| `empirical_fisher` | second moment of the single-example gradients | the data's |
| `hessian` | Hessian of the loss; may be indefinite | the data's |

A model is measured as `predict_fn` runs it, so let it run in evaluation mode: without dropout,
and with the running statistics of batch normalisation. In Flax linen:

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> class Model(nn.Module):
...     @nn.compact
...     def __call__(self, x, train):
...         x = nn.BatchNorm(use_running_average=not train)(x)
...         return nn.Dropout(0.5, deterministic=not train)(x)
>>> model, batch = Model(), {"x": jnp.ones((8, 3))}
>>> variables = model.init(jax.random.key(0), batch["x"], train=False)
>>> params, stats = variables["params"], variables["batch_stats"]
>>> predict_fn = lambda params, batch: model.apply(
...     {"params": params, "batch_stats": stats}, batch["x"], train=False
... )
>>> operator = ggn(predict_fn)

`fgo_jax.integrations.flax.nnx_predict_fn` makes that of an nnx model.

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
