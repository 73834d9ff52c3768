"""The first estimate of all factors, and the moments that it is compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import fgo_jax as fgo
from fgo_jax.curvature import losses
from fgo_jax.precondition.kfac.estimate import estimator
from fgo_jax.precondition.kfac.layers import layout
from tests import draws

ROWS = functools.partial(jnp.arange, dtype=jnp.int32)


def first_factors(model, batch, loss="squared_error", approximation="expand"):
    """Parameters, the estimates of one batch, and the gradients c of the outputs behind them.

    The factors approximate the sum of c_i c_j over rows i, j. The transformation's state holds the
    first estimate after its first step.
    """
    params = draws.params(model, batch)

    def fn(p, x):
        return model.apply({"params": p}, x)

    table = fgo.precondition.kfac_layers(fn, params, batch)
    plan = layout(params, table, lambda path: False)
    estimate = estimator(fn, loss, None, approximation == "reduce", 4096, None)
    key = jax.random.key(5)

    @jax.jit
    def both(params, batch):
        outputs = fn(params, batch)
        labels = losses.draw_labels(loss, outputs, key, ROWS)
        drawn = losses.drawn_cotangent(loss, outputs, labels, batch)
        return estimate(plan, params, batch, key), drawn

    found, drawn = both(params, batch)
    assert all(good for _, good in found)
    names = [*(x.path for x in plan.layers), *(d.path for d in plan.diagonals)]
    return params, {n: item for n, (item, _) in zip(names, found, strict=True)}, drawn


def moment(x, axes=1, constant=False):
    """Sum over positions of the outer product, one position after the other, in float64."""
    rows = np.asarray(x, np.float64).reshape(-1, int(np.prod(x.shape[x.ndim - axes :])))
    if constant:
        rows = np.hstack([rows, np.ones((len(rows), 1))])
    return sum(np.outer(row, row) for row in rows)


def close(got, expected):
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
