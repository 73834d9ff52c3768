"""The GGN against the Hessian of the linearised model and against the Fisher's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from fgo_jax.curvature.friction import friction
from fgo_jax.curvature.ggn import ggn
from fgo_jax.curvature.hessian import hessian
from fgo_jax.curvature.losses import example_losses


def predict(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b"])
    return hidden @ params["w2"]


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "w1": jax.random.normal(keys[0], (3, 4)),
        "b": jax.random.normal(keys[1], (4,)),
        "w2": jax.random.normal(keys[2], (4, 3)),
    }


def make_batch(*leading):
    x = jax.random.normal(jax.random.key(1), (*leading, 3))
    return {"x": x, "y": jax.random.randint(jax.random.key(2), leading, 0, 3)}


def dense(operator, params, batch):
    """All columns of the operator, as a matrix over the flattened parameters."""
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def columns(params, batch):
        matvec = operator(params, batch)
        return jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(flat.size))

    return np.asarray(columns(params, batch).T)


def hessian_of_linearised_model(loss, params, batch):
    """The GGN's definition: the loss is curved, the model is not."""
    flat, unravel = ravel_pytree(params)

    def linearised(step):
        outputs, change = jax.jvp(lambda p: predict(p, batch), (params,), (unravel(step),))
        return loss(outputs + change, batch)

    return np.asarray(jax.jit(jax.hessian(linearised))(jnp.zeros_like(flat)))


def softmax(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"]).mean()


def sigmoid(outputs, batch):
    labels = jax.nn.one_hot(batch["y"], 3)
    return optax.sigmoid_binary_cross_entropy(outputs, labels).sum(-1).mean()


def squared(outputs, batch):
    return 0.5 * jnp.square(outputs - batch["y"][..., None]).sum(-1).mean()


def pseudo_huber(outputs, batch):
    return jnp.sqrt(1.0 + jnp.square(outputs - batch["y"][..., None])).sum(-1).mean()


CASES = {
    "softmax": ("softmax_cross_entropy", softmax, (6,)),
    "softmax over a sequence": ("softmax_cross_entropy", softmax, (3, 4)),
    "sigmoid": ("sigmoid_cross_entropy", sigmoid, (6,)),
    "squared": ("squared_error", squared, (6,)),
    "function": (pseudo_huber, pseudo_huber, (6,)),
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_hessian_of_the_linearised_model(name, params):
    loss, reference, leading = CASES[name]
    batch = make_batch(*leading)
    actual = dense(ggn(predict, loss), params, batch)
    expected = hessian_of_linearised_model(reference, params, batch)
    # Two float32 evaluations of sums of some ten products each.
    np.testing.assert_allclose(actual, expected, atol=2e-6 * np.abs(expected).max() + 1e-7)
    np.testing.assert_allclose(actual, actual.T, atol=2e-6 * np.abs(expected).max())


def test_softmax_is_the_fisher_over_the_models_own_labels(params):
    batch = make_batch(5)
    p = jax.nn.softmax(predict(params, batch))

    def gradient(x, label):
        one = {"x": x[None], "y": label[None]}
        return ravel_pytree(jax.grad(lambda q: softmax(predict(q, one), one))(params))[0]

    over_labels = jax.vmap(gradient, in_axes=(None, 0))
    g = jax.jit(jax.vmap(over_labels, in_axes=(0, None)))(batch["x"], jnp.arange(3))
    fisher = jnp.einsum("ec,eci,ecj->ij", p, g, g) / 5
    actual = dense(ggn(predict), params, batch)
    np.testing.assert_allclose(actual, fisher, atol=2e-6 * float(jnp.abs(fisher).max()))


def test_a_named_loss_reads_no_labels(params):
    batch = make_batch(4)
    with_labels = dense(ggn(predict), params, batch)
    without = dense(ggn(predict), params, {"x": batch["x"]})
    np.testing.assert_array_equal(with_labels, without)


def test_the_model_is_run_once_for_all_products(params):
    calls = []

    def counted(p, batch):
        calls.append(1)
        return predict(p, batch)

    matvec = ggn(counted)(params, make_batch(4))
    for _ in range(3):
        matvec(params)
    assert len(calls) == 1


def test_bfloat16_parameters_give_float32_products(params):
    half = optax.tree.cast(params, jnp.bfloat16)
    batch = make_batch(6)
    x = batch["x"].astype(jnp.bfloat16)
    product = jax.jit(lambda v: ggn(predict)(half, {"x": x})(v))(params)
    rounded = optax.tree.cast(half, jnp.float32)
    exact = jax.jit(lambda v: ggn(predict)(rounded, batch)(v))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}
    # The model's own arithmetic has 8 bits; errors of some ten roundings may add up.
    error = optax.tree.norm(optax.tree.sub(product, exact)) / optax.tree.norm(exact)
    assert 0.0 < float(error) < 10 * 2.0**-8


@pytest.mark.parametrize(("rows", "classes"), [(1024, 4096), (100_000, 2)])
@pytest.mark.parametrize("out", [jnp.float16, jnp.float32])
def test_cotangents_in_float16_neither_vanish_nor_overflow(rows, classes, out):
    # Shares of 1/n and probabilities of 1/C: below 2^-24 when the vector has unit length. Where
    # all inputs are one, a product is the sum of all rows, which float16 holds up to 65,504.
    loss = "softmax_cross_entropy" if classes > 2 else "squared_error"
    x = jax.random.normal(jax.random.key(0), (rows, 4)) if classes > 2 else jnp.ones((rows, 4))
    w, v = (jax.random.normal(jax.random.key(i), (4, classes)) for i in (1, 2))
    v = v / jnp.linalg.norm(v)
    # The logits of many models are cast to float32 at the end.
    operator = ggn(lambda p, b: (b.astype(p.dtype) @ p).astype(out), loss)

    @jax.jit
    def along(w, x):
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return friction(operator(w, x), v)

    np.testing.assert_allclose(along(w.astype(jnp.float16), x), along(w, x), rtol=0.01)
    assert not np.any(operator(w.astype(jnp.float16), x)(jnp.zeros_like(v)))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_hessian_in_float16_holds_small_and_large_curvature(size):
    def losses(p, batch):
        return size / 2 * jnp.sum(jnp.square(p)) * jnp.ones(len(batch), p.dtype)

    operator = hessian(losses)
    found = operator(jnp.ones(3, jnp.float16), jnp.ones(4))(jnp.float32([1.0, 0.0, -2.0]))
    np.testing.assert_allclose(found, size * np.array([1.0, 0.0, -2.0]), rtol=2e-3)


@pytest.mark.parametrize("mean", [lambda losses: losses, jnp.mean])
def test_the_hessian_of_a_linear_model_in_float16_is_its_ggn(mean):
    x = jax.random.normal(jax.random.key(0), (512, 4))
    w, v = (jax.random.normal(jax.random.key(i), (4, 8192)) for i in (1, 2))
    v = v / jnp.linalg.norm(v)

    def model(p, batch):
        return batch["x"].astype(p.dtype) @ p

    losses = example_losses(model)
    operator = hessian(lambda p, batch: mean(losses(p, batch)))
    batch = {"x": x, "label": jnp.arange(512)}

    @jax.jit
    def products(w):
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return operator(w, batch)(v)

    exact = ggn(model)(w.astype(jnp.float16).astype(jnp.float32), batch)(v)
    error = products(w.astype(jnp.float16)) - exact
    assert jnp.linalg.norm(error) < 0.01 * jnp.linalg.norm(exact)


def test_works_inside_jit_and_scan(params):
    batch = make_batch(4)

    @jax.jit
    def power(vector):
        matvec = ggn(predict)(params, batch)
        return jax.lax.scan(lambda v, _: (matvec(v), None), vector, length=2)[0]

    matvec = ggn(predict)(params, batch)
    expected = matvec(matvec(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        power(params),
        expected,
    )


def test_saturated_sigmoids_keep_their_variance():
    matvec = ggn(lambda p, b: p * b, "sigmoid_cross_entropy")(jnp.array([20.0]), jnp.ones((1, 1)))
    np.testing.assert_allclose(matvec(jnp.ones(1)), np.exp(-20.0), rtol=1e-5)


def test_an_unknown_loss_names_the_choices():
    with pytest.raises(ValueError, match="softmax_cross_entropy, sigmoid_cross_entropy, squared"):
        ggn(predict, "hinge")


@pytest.mark.parametrize("outputs", [lambda p, b: (b["x"] @ p["w1"])[:, 0], lambda p, b: (p, p)])
def test_outputs_that_a_named_loss_cannot_take(outputs, params):
    with pytest.raises(ValueError, match=r"squared_error takes outputs of shape \[..., C\]"):
        ggn(outputs, "squared_error")(params, make_batch(4))
