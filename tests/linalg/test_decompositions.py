"""No decomposition is batched, whoever maps over the measurement."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import fgo_jax as fgo
from fgo_jax import probes
from fgo_jax.linalg.decompositions import eigh
from tests.problems import mlp, mlp_batch, mlp_loss, mlp_params

LAPACK = {"eigh", "svd", "qr", "geqrf", "cholesky", "lu", "triangular_solve", "householder_product"}
ROOT = Path(__file__).parents[2] / "fgo_jax"
PARAMS, BATCH = mlp_params(), mlp_batch(0, 16)
GGN = fgo.curvature.ggn(lambda params, batch: mlp(params, batch["x"]))
ROWS = probes.example_gradients(lambda p, e: mlp_loss(p, jax.tree.map(lambda x: x[None], e)))
PROBES = {
    "gradient_stream": probes.gradient_stream(),
    "gram": probes.gram(ROWS, examples=16),
    "lanczos": probes.lanczos(GGN, 6, examples=16),
    "hutchinson": probes.hutchinson(GGN, examples=16, deflate=2),
}


def decompositions(jaxpr):
    """The shapes that decompositions get anywhere in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in LAPACK:
            yield equation.invars[0].aval.shape
        for below in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
        ):
            if isinstance(below, core.ClosedJaxpr):
                yield from decompositions(below.jaxpr)
            elif isinstance(below, core.Jaxpr):
                yield from decompositions(below)


@pytest.mark.parametrize("name", PROBES)
def test_an_ensemble_of_measurements_decomposes_one_matrix_at_a_time(name):
    probe = PROBES[name]

    def measure(params, key):
        inputs = probes.ProbeInputs(params, params, params, BATCH, key, jnp.int32(200))
        return probe.measure(inputs, probe.init(params))

    ensemble = jax.tree.map(lambda p: jnp.stack([p, 2.0 * p]), PARAMS)
    nested = jax.tree.map(lambda p: jnp.stack([p, p]), ensemble)
    keys = jax.random.split(jax.random.key(0), (2, 2))
    program = jax.make_jaxpr(jax.vmap(jax.vmap(measure)))(nested, keys)
    shapes = list(decompositions(program.jaxpr))
    assert shapes
    assert all(len(shape) == 2 for shape in shapes), shapes


def test_a_loop_gives_what_single_matrices_give():
    halves = np.random.default_rng(0).normal(size=(3, 2, 5, 5))
    matrices = jnp.asarray(halves + np.swapaxes(halves, -1, -2), jnp.float32)
    values, vectors = jax.jit(jax.vmap(jax.vmap(eigh)))(matrices)
    for place in np.ndindex(3, 2):
        single = jax.jit(jnp.linalg.eigh)(matrices[place])
        np.testing.assert_array_equal(values[place], single[0])
        np.testing.assert_array_equal(vectors[place], single[1])


@pytest.mark.parametrize("room", ["linalg", "curvature", "probes", "analysis"])
def test_every_decomposition_comes_from_one_place(room):
    """Of JAX's functions: NumPy's are not mapped. Norms are no decompositions."""
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if path.name == "decompositions.py" or not isinstance(node, ast.Attribute):
                continue
            text = ast.unparse(node)
            taken = text.startswith(("jnp.linalg.", "jax.lax.linalg.", "jax.scipy.linalg."))
            assert not taken or text == "jnp.linalg.norm", f"{path.name}: {text}"
