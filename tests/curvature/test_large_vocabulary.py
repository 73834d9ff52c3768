"""What a product keeps in memory when the outputs are logits over 50,000 classes."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from fgo_jax import curvature
from fgo_jax.curvature.selection import linearise

CLASSES, WIDTH, ROWS = 50_000, 8, 16
LOGITS = 4 * ROWS * CLASSES  # bytes


def predict(params, batch):
    return jnp.tanh(batch["x"] @ params["in"]) @ params["out"] + params["bias"]


loss_of = curvature.example_losses(predict)


def gradient(params, batch, vector):
    del vector
    return jax.grad(lambda p: loss_of(p, batch).mean())(params)


def ggn(params, batch, vector):
    return curvature.ggn(predict)(params, batch)(vector)


def ggn_scanned(params, batch, vector):
    """One linearisation for three products, as in a Krylov process."""
    matvec = curvature.ggn(predict)(params, batch)
    return jax.lax.scan(lambda v, _: (matvec(v), None), vector, length=3)[0]


def empirical_fisher(params, batch, vector):
    return curvature.empirical_fisher(loss_of)(params, batch)(vector)


def sampled_fisher(params, batch, vector):
    operator = curvature.sampled_fisher(predict)
    return operator(params, batch, key=jax.random.key(0))(vector)


def double_backward(params, batch, vector):
    """What must not be built: the output Hessian by a second pass back through the loss."""
    model = linearise(lambda p: predict(p, batch), params, None)
    grad = jax.grad(lambda z: jnp.mean(jax.nn.logsumexp(z, axis=-1)))
    tangent = model.push(vector)
    return model.pull(jax.grad(lambda z: jnp.vdot(grad(z), tangent))(model.outputs))


def class_by_class(params, batch, vector):
    """Nor this: the output Hessian as a matrix."""
    model = linearise(lambda p: predict(p, batch), params, None)
    hessian = jax.vmap(jax.hessian(jax.nn.logsumexp))(model.outputs)
    return model.pull(jnp.einsum("rij,rj->ri", hessian, model.push(vector)) / ROWS)


def compiled(function):
    shapes = {"in": (4, WIDTH), "out": (WIDTH, CLASSES), "bias": (CLASSES,)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    batch = {
        "x": jax.ShapeDtypeStruct((ROWS, 4), jnp.float32),
        "label": jax.ShapeDtypeStruct((ROWS,), jnp.int32),
    }
    return jax.jit(function).lower(params, batch, params).compile()


def temporaries(function):
    """Bytes beside arguments and results, in arrays of the logits' size."""
    return compiled(function).memory_analysis().temp_size_in_bytes / LOGITS


def largest(function):
    """Elements of the largest array in the optimised program."""
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled(function).as_text())
    return max(math.prod(int(n) for n in shape.split(",")) for shape in shapes)


@pytest.fixture(scope="module")
def of_the_gradient():
    return temporaries(gradient)


# The GGN holds its outputs and one tangent, turned into the cotangent in place: as the
# gradient does. The Fishers of drawn and of given labels keep the gradient of the loss,
# too, and the latter its linearisation.
@pytest.mark.parametrize(
    ("function", "more"),
    [(ggn, 0.1), (ggn_scanned, 0.1), (empirical_fisher, 2.1), (sampled_fisher, 1.1)],
)
def test_products_take_the_memory_of_a_gradient(function, more, of_the_gradient):
    assert temporaries(function) < of_the_gradient + more
    assert largest(function) <= max(ROWS, WIDTH) * CLASSES


def test_the_measure_sees_a_double_backward(of_the_gradient):
    assert temporaries(double_backward) > of_the_gradient + 1.5


def test_the_measure_sees_a_matrix_over_the_vocabulary(of_the_gradient):
    assert temporaries(class_by_class) > of_the_gradient + CLASSES / 2
    assert largest(class_by_class) >= CLASSES**2


def test_chunks_divide_the_memory(of_the_gradient):
    operator = curvature.ggn(predict, chunk_size=ROWS // 8)
    in_chunks = temporaries(lambda params, batch, v: operator(params, batch)(v))
    # An eighth of the logits, and the sum and the term of two products of the parameters.
    parameters = 2 * (WIDTH + 1) / ROWS
    assert in_chunks < of_the_gradient / 8 + parameters + 0.1
