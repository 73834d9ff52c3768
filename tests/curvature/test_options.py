"""Labels, weights, masks and chunks: what they mean at the edges, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgo_jax import curvature

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.zeros(4)}
BATCH = {
    "x": jnp.linspace(0.0, 1.0, 18).reshape(6, 3),
    "label": jnp.array([0, 3, 1, 2, 2, 0]),
    "kept": jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0]),
}


def predict(params, batch):
    return batch["x"] @ params["w"] + params["b"]


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected
    )


def test_integer_labels_and_their_one_hot_rows_have_the_same_losses():
    integer = curvature.example_losses(predict)(PARAMS, BATCH)
    dense = curvature.example_losses(predict, labels=lambda b: jax.nn.one_hot(b["label"], 4))
    np.testing.assert_allclose(dense(PARAMS, BATCH), integer, rtol=1e-6)
    assert integer.shape == (6,)


def test_labels_are_found_in_a_tuple():
    model = lambda params, batch: batch[0] @ params["w"] + params["b"]  # noqa: E731
    by_index = curvature.example_losses(model, labels=1)(PARAMS, (BATCH["x"], BATCH["label"]))
    np.testing.assert_array_equal(by_index, curvature.example_losses(predict)(PARAMS, BATCH))


def test_losses_are_float32_for_bfloat16_models():
    half = optax.tree.cast(PARAMS, jnp.bfloat16), BATCH | {"x": BATCH["x"].astype(jnp.bfloat16)}
    assert curvature.example_losses(predict)(*half).dtype == jnp.float32


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_labels_out_of_range_is_refused_where_it_can_be_seen(label, chunk_size):
    operator = curvature.empirical_fisher(curvature.example_losses(predict), chunk_size=chunk_size)
    batch = BATCH | {"label": BATCH["label"].at[5].set(label)}
    with pytest.raises(ValueError, match=rf"labels from 0 to 3, got .*{label}.*weight of zero"):
        operator(PARAMS, batch)


def test_labels_of_a_sigmoid_lie_between_0_and_1():
    losses = curvature.example_losses(predict, "sigmoid_cross_entropy", "y")
    with pytest.raises(ValueError, match=r"labels from 0 to 1, got 0.0 to 2.0"):
        losses(PARAMS, BATCH | {"y": jnp.zeros((6, 4)).at[0, 0].set(2.0)})


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        ("softmax_cross_entropy", jnp.zeros((6, 1), int)),
        ("softmax_cross_entropy", jnp.zeros(6)),
        ("sigmoid_cross_entropy", jnp.zeros(6, int)),
        ("squared_error", jnp.zeros((6, 1))),
    ],
)
def test_labels_of_shapes_that_do_not_fit(loss, labels):
    with pytest.raises(ValueError, match=r"takes labels of shape \(6.*reshape or cast"):
        curvature.example_losses(predict, loss)(PARAMS, BATCH | {"label": labels})


def test_labels_under_a_missing_key_list_the_keys_there_are():
    with pytest.raises(ValueError, match=r"labels='y' is not in the batch.*'label'"):
        curvature.example_losses(predict, labels="y")(PARAMS, BATCH)


def test_labels_are_no_array():
    with pytest.raises(ValueError, match=r"labels must be a key.*put the array into the batch"):
        curvature.example_losses(predict, labels=BATCH["label"])


def test_labels_need_a_named_loss():
    with pytest.raises(ValueError, match="example_losses needs a loss with a known"):
        curvature.example_losses(predict, lambda outputs, batch: outputs.sum(-1))


def test_weights_of_0_and_1_give_the_mean_over_what_is_kept():
    kept = jax.tree.map(lambda leaf: leaf[BATCH["kept"] > 0], BATCH)
    weighted = curvature.ggn(predict, weights="kept")(PARAMS, BATCH)
    assert_close(weighted(PARAMS), curvature.ggn(predict)(PARAMS, kept)(PARAMS))


def test_weights_go_to_a_loss_function_of_single_examples():
    def loss(outputs, batch):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])

    by_function = curvature.ggn(predict, loss, weights="kept")(PARAMS, BATCH)
    assert_close(by_function(PARAMS), curvature.ggn(predict, weights="kept")(PARAMS, BATCH)(PARAMS))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_weights_that_are_all_zero_give_zero(chunk_size):
    operator = curvature.ggn(
        predict, weights=lambda b: jnp.zeros_like(b["kept"]), chunk_size=chunk_size
    )
    assert_close(operator(PARAMS, BATCH)(PARAMS), optax.tree.zeros_like(PARAMS))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"weights must have the shape \(6,\).*got \(6, 3\)"):
        curvature.ggn(predict, weights="x")(PARAMS, BATCH)


@pytest.mark.parametrize("make", [curvature.hessian, lambda f, **k: curvature.ggn(predict, f, **k)])
def test_weights_of_a_scalar_loss_are_refused(make):
    with pytest.raises(ValueError, match="weights need one loss per example, got a scalar"):
        make(lambda *_: jnp.zeros([]), weights="kept")(PARAMS, BATCH)


def test_weights_are_no_array():
    with pytest.raises(ValueError, match="weights must be a key"):
        curvature.hessian(lambda params, batch: 0.0, weights=jnp.ones(6))


def test_mask_may_be_a_prefix_of_the_parameters():
    nested = {"layer": PARAMS, "scale": jnp.ones(4)}
    model = lambda p, batch: predict(p["layer"], batch) * p["scale"]  # noqa: E731
    operator = curvature.ggn(model, mask={"layer": True, "scale": False})
    product = operator(nested, BATCH)(nested)
    assert_close(product["layer"], curvature.ggn(predict)(PARAMS, BATCH)(PARAMS))
    assert not np.any(product["scale"])


@pytest.mark.parametrize("mask", [False, {"w": False, "b": False}, lambda params: False])
def test_mask_that_is_empty_is_refused(mask):
    with pytest.raises(ValueError, match=r"mask chooses no parameters.*mask=None for all"):
        curvature.ggn(predict, mask=mask)(PARAMS, BATCH)


def test_mask_holds_bools():
    mask = {"w": jnp.ones((3, 4), bool), "b": True}
    with pytest.raises(ValueError, match="mask must hold a bool per leaf"):
        curvature.ggn(predict, mask=mask)(PARAMS, BATCH)


@pytest.mark.parametrize(("chunk_size", "divisor"), [(4, 3), (5, 3), (64, 6)])
def test_chunks_that_do_not_divide_are_refused(chunk_size, divisor):
    message = f"chunk_size={chunk_size} does not divide the 6 examples.*such as {divisor} "
    with pytest.raises(ValueError, match=message):
        curvature.ggn(predict, chunk_size=chunk_size)(PARAMS, BATCH)


def test_chunks_need_the_examples_along_axis_0_of_everything():
    with pytest.raises(ValueError, match="all have the examples along axis 0"):
        curvature.ggn(predict, chunk_size=2)(PARAMS, BATCH | {"temperature": jnp.ones([])})


def test_chunks_are_of_a_positive_size():
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1"):
        curvature.ggn(predict, chunk_size=0)


def test_chunks_of_a_mean_are_averaged():
    losses = curvature.example_losses(predict)
    whole = curvature.hessian(lambda p, b: losses(p, b).mean())(PARAMS, BATCH)
    chunked = curvature.hessian(lambda p, b: losses(p, b).mean(), chunk_size=2)(PARAMS, BATCH)
    assert_close(chunked(PARAMS), whole(PARAMS))


def test_a_softmax_over_one_class_is_refused():
    with pytest.raises(ValueError, match="softmax_cross_entropy over 1 class is constant"):
        curvature.ggn(lambda p, b: predict(p, b)[:, :1])(PARAMS, BATCH)


@pytest.mark.parametrize("loss", [lambda p, b: jnp.zeros([]), lambda p, b: {"a": jnp.zeros(6)}])
def test_the_empirical_fisher_needs_one_loss_per_example(loss):
    with pytest.raises(ValueError, match=r"needs one loss per example.*before their mean"):
        curvature.empirical_fisher(loss)(PARAMS, BATCH)


@pytest.mark.parametrize("kind", ["ggn", "sampled_fisher", "empirical_fisher", "hessian"])
def test_products_are_float32_under_strict_promotion_and_x64(kind):
    def model(params, batch):
        return batch["x"] @ params["w"] + params["b"][None]

    read = kind in ("empirical_fisher", "hessian")
    function = curvature.example_losses(model) if read else model
    operator = getattr(curvature, kind)(function, weights="kept", mask=True, chunk_size=3)
    key = {"key": jax.random.key(0)} if kind == "sampled_fisher" else {}

    @jax.jit
    def product(params, batch):
        return operator(params, batch, **key)(params)

    strict = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with jax.enable_x64(True), strict[0], strict[1]:
        leaves = jax.tree.leaves(product(PARAMS, BATCH))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


LABELLED = {
    "hessian": lambda **k: curvature.hessian(curvature.example_losses(predict, **k)),
    "empirical_fisher": lambda **k: curvature.empirical_fisher(
        curvature.example_losses(predict, **k)
    ),
    "own loss": lambda **k: curvature.ggn(
        predict, lambda z, b: curvature.example_losses(lambda p, b: p, **k)(z, b)
    ),
}


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("label", [-100, -1, 4])
def test_labels_out_of_range_give_nan_inside_a_jit(kind, label):
    batch = BATCH | {"label": BATCH["label"].at[5].set(label)}
    product = jax.jit(lambda p, b: LABELLED[kind]()(p, b)(p))
    assert np.all(np.isnan(product(PARAMS, batch)["w"]))
    assert np.all(np.isfinite(product(PARAMS, BATCH)["w"]))


@pytest.mark.parametrize("label", [-0.5, 1.5])
def test_labels_that_are_no_probabilities_give_nan_inside_a_jit(label):
    rows = jax.nn.one_hot(BATCH["label"], 4).at[2, 1].set(label)
    losses = curvature.example_losses(predict, "sigmoid_cross_entropy")
    found = jax.jit(losses)(PARAMS, BATCH | {"label": rows})
    assert np.isnan(found).tolist() == [False, False, True, False, False, False]


def test_outputs_that_are_no_floats_are_named():
    def heads(params, batch):
        scores = predict(params, batch)
        return {"scores": scores, "class": jnp.argmax(scores, axis=-1)}

    operator = curvature.ggn(heads, lambda outputs, batch: jnp.sum(outputs["scores"] ** 2, -1))
    with pytest.raises(ValueError, match="its output 'class' is int32: return only the outputs"):
        operator(PARAMS, BATCH)
