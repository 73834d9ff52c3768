"""Singular values are levelled; everything else of a direction stays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from tests.precondition.sequences import gradients, run

Numbers = optax.contrib.MuonDimensionNumbers
SHAPES = {"wide": (3, 6), "tall": (6, 4), "bias": (5,), "stack": (2, 3, 4)}
NUMBERS = {"wide": Numbers(), "tall": Numbers(), "bias": None, "stack": Numbers(1, 2)}


@pytest.fixture(scope="module")
def grads():
    sequences = {k: list(gradients(s, 8, seed=3)) for k, s in SHAPES.items()}
    return [{k: jnp.asarray(g[t], jnp.float32) for k, g in sequences.items()} for t in range(8)]


def test_behind_a_momentum_it_is_muon(grads):
    matrices = [{k: g[k] for k in ("wide", "tall")} for g in grads]
    numbers = {k: Numbers() for k in ("wide", "tall")}
    muon = optax.contrib.scale_by_muon(nesterov=False, weight_dimension_numbers=numbers)
    ours = optax.chain(optax.ema(0.95, debias=False), fgo.orthogonalise())
    for a, b in zip(run(muon, matrices)[0], run(ours, matrices)[0], strict=True):
        # The same sums in another order, multiplied by up to 3.4^5.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)


def test_the_eigenbasis_direction_keeps_its_metric_and_its_singular_vectors(grads):
    eigenbasis = fgo.scale_by_kronecker_fisher(refresh_every=3)
    level = fgo.orthogonalise(0.2, weight_dimension_numbers=NUMBERS)
    levelled = fgo.precondition.chain(eigenbasis, level)
    before, state = run(eigenbasis, grads)
    after, whole = run(levelled, grads)
    jax.tree.map(
        np.testing.assert_array_equal,
        eigenbasis.metric(grads[0], state),
        levelled.metric(grads[0], whole),
    )
    np.testing.assert_array_equal(before[-1]["bias"], after[-1]["bias"])
    pairs = [(before[-1][k], after[-1][k]) for k in ("wide", "tall")]
    pairs += list(zip(before[-1]["stack"], after[-1]["stack"], strict=True))
    for given, out in pairs:
        u, _, vt = np.linalg.svd(np.float64(given), full_matrices=False)
        core = u.T @ np.float64(out) @ vt.T / (0.2 * max(given.shape) ** 0.5)
        # Muon's five steps bring singular values above 1e-2 of the norm to this interval.
        assert np.diag(core).min() > 0.65
        assert np.diag(core).max() < 1.25
        np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-4)


def test_the_size_of_the_direction_does_not_count_and_what_is_not_finite_is_dropped(grads):
    tx = fgo.orthogonalise(weight_dimension_numbers=NUMBERS)
    update = jax.jit(lambda g: tx.update(g, tx.init(g))[0])
    one = update(grads[0])
    for size in (1e-30, 1e-12, 1e12):
        other = update({name: size * g for name, g in grads[0].items()})
        for name in ("wide", "tall", "stack"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5)
    bad = {**grads[0], "wide": grads[0]["wide"].at[1, 2].set(jnp.nan)}
    bad["stack"] = grads[0]["stack"].at[0, 0, 0].set(1e30)  # whose square overflows
    found = update(bad)
    assert not np.any(found["wide"])
    assert not np.any(found["stack"][0])
    np.testing.assert_array_equal(found["stack"][1], one["stack"][1])
    np.testing.assert_array_equal(found["tall"], one["tall"])


def test_matrices_that_it_cannot_level_are_refused():
    for dtype, match in (("complex64", "orthogonalise does not take complex"), ("int32", "masked")):
        updates = {"vector": jnp.ones(2, dtype), "matrix": jnp.ones((2, 2), dtype)}
        with pytest.raises(ValueError, match=match):
            fgo.orthogonalise().update(updates, optax.EmptyState())


def test_a_size_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="consistent_rms must be a finite number > 0"):
        fgo.orthogonalise(0.0)
