"""Flax: `from fgo_jax.integrations import flax as fgo_flax`. `import fgo_jax` imports no Flax.

| name | for | what it does |
|---|---|---|
| `TrainState` | linen | hands `value=`, `batch=`, ... on to the optimizer; `eval_params` |
| `recompute_batch_stats` | linen | batch statistics for the averaged weights |
| `nnx_recompute_batch_stats` | nnx | the same, in the model itself |
| `nnx_predict_fn` | nnx | the model as `(params, batch) -> outputs`: curvature, spectra, K-FAC |

`nnx.Optimizer` needs no bridge: its `update(model, grads, value=loss, batch=batch)` hands all
extra arguments on, and :func:`fgo_jax.telemetry`, :func:`fgo_jax.eval_params` and the others
read `optimizer.opt_state`. Where these take parameters, give `nnx.state(model, nnx.Param)`, as in
`nnx.update(model, fgo.eval_params(optimizer.opt_state, nnx.state(model, nnx.Param)))`.
"""

from fgo_jax import _checks

try:
    from fgo_jax.integrations.flax.batch_stats import (
        nnx_recompute_batch_stats,
        recompute_batch_stats,
    )
    from fgo_jax.integrations.flax.predict import nnx_predict_fn
    from fgo_jax.integrations.flax.train_state import TrainState
except ImportError as error:
    raise ImportError(_checks.NEEDS_FLAX) from error

__all__ = [
    "TrainState",
    "nnx_predict_fn",
    "nnx_recompute_batch_stats",
    "recompute_batch_stats",
]
