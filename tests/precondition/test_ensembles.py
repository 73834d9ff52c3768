"""An ensemble under `jax.vmap`: no batched decomposition, which waits for ever on CPU."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.precondition.natural_gradients import BATCH, MAKERS, PARAMS, random_gradients, run

DECOMPOSE = [name for name in MAKERS if name not in ("diagonal", "graft")]
LAPACK = ("eigh", "qr", "geqrf", "householder_product", "cholesky", "svd", "lu", "triangular_solve")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def ensemble(name, members=3, steps=2):
    """(one update of all members at once, its arguments after `steps` updates)"""
    tx = MAKERS[name]()
    grads = jax.tree.map(lambda *x: jnp.stack(x), *random_gradients(members))
    params = jax.tree.map(lambda p: jnp.stack([p] * members), PARAMS)
    update = jax.vmap(lambda g, s, p: tx.update(g, s, p, batch=BATCH))
    return update, (grads, jax.vmap(tx.init)(params), params)


@pytest.mark.parametrize("name", DECOMPOSE)
def test_no_decomposition_is_batched(name):
    update, arguments = ensemble(name)
    found = [
        equation.invars[0].aval.shape
        for equation in equations(jax.make_jaxpr(update)(*arguments).jaxpr)
        if equation.primitive.name in LAPACK
    ]
    assert found
    assert all(len(shape) == 2 for shape in found)


def with_extremes(grads):
    """A member without gradients, an ordinary one, and one of large gradients."""
    sizes = jnp.asarray([0.0, 1.0, 1e16])
    return jax.tree.map(lambda g: g * sizes.reshape(-1, *[1] * (g.ndim - 1)), grads)


ALL = """
import jax
from tests import quick
from tests.precondition.natural_gradients import finite
from tests.precondition.test_ensembles import DECOMPOSE, with_extremes, ensemble
quick.build()
for name in DECOMPOSE:
    update, (grads, state, params) = ensemble(name)
    for _ in range(2):
        updates, state = jax.jit(update)(with_extremes(grads), state, params)
    assert finite((updates, state)), name
print("all came back")
"""


def test_an_ensemble_of_every_transform_comes_back():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALL], env=env, capture_output=True, text=True, timeout=300
    )
    assert "all came back" in done.stdout, done.stderr[-3000:]


def test_each_member_gets_what_it_gets_alone():
    update, (grads, state, params) = ensemble("kronecker")
    together, _ = jax.jit(update)(grads, state, params)
    for i, g in enumerate(random_gradients(3)):
        alone = run("kronecker", [g])[0][0]
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)
