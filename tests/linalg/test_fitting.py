"""Which trees fit, and what is said of those that do not."""

import jax
import jax.numpy as jnp
import optax
import pytest

from fgo_jax.linalg.fitting import check_fits

ONE, TWO = jnp.ones(1), jnp.ones(2)
FITS = {
    "equal": ({"a": [ONE, TWO]}, {"a": [TWO[:1], TWO]}),
    "shapes alone": (jax.eval_shape(lambda: ONE), ONE),
    "no gradient": ({"a": None, "b": ONE}, {"a": TWO, "b": ONE}),
    "neither": ({"a": None}, {"a": None}),
    "masked": ({"a": {"x": ONE}, "b": TWO}, {"a": optax.MaskedNode(), "b": TWO}),
    "both masked": ({"a": optax.MaskedNode()}, {"a": optax.MaskedNode()}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("case", FITS)
def test_what_fits_passes(case):
    check_fits("gradient", FITS[case][0], "the sums", FITS[case][1])


DIFFER = {
    "containers": ((ONE, TWO), [ONE, TWO], "in other containers than the sums"),
    "bare": (ONE, {"a": ONE}, r"no gradient at \['a'\], but a leaf in the sums"),
    "bare and nothing": (ONE, {}, "there is a gradient at the top, but no leaf"),
    "beside a mask": ({"a": ONE, "b": ONE}, {"a": optax.MaskedNode()}, r"gradient at \['b'\]"),
    "bare shape": (ONE, TWO, r"the gradient has the shape \(1,\), but the sums there \(2,\)"),
}


@pytest.mark.parametrize("case", DIFFER)
def test_what_does_not_fit_is_named(case):
    given, kept, message = DIFFER[case]
    with pytest.raises(ValueError, match=message):
        check_fits("gradient", given, "the sums", kept)
