"""Drift of representations against SciPy's distances and rank correlations."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from fgo_jax.analysis import feature_split, representation_drift

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 12))
MOVED = X + 0.5 * RNG.standard_normal(X.shape)


def rotation(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


@pytest.mark.parametrize("after", [MOVED, MOVED[:, :5], np.round(MOVED), MOVED.reshape(40, 3, 4)])
def test_against_scipy_also_with_ties_and_other_features(after):
    wanted = 1 - spearmanr(pdist(X), pdist(after.reshape(40, -1))).statistic
    assert representation_drift(X, after) == pytest.approx(wanted, abs=1e-12)


def test_distances_are_all_that_counts():
    turned = 3.0 * (X @ rotation(12)) - 1.0
    assert representation_drift(X, turned) == pytest.approx(0.0, abs=1e-12)
    wide = np.concatenate([turned, np.zeros((40, 7))], 1)
    assert representation_drift(X, wide) == pytest.approx(0.0, abs=1e-12)
    # Distances 1, 3 and 2 become 3, 1 and 2: the opposite order.
    assert representation_drift([[0.0], [1.0], [3.0]], [[0.0], [3.0], [1.0]]) == pytest.approx(2.0)
    # A collapsed representation has no order.
    assert np.isnan(representation_drift(X, np.ones((40, 2))))


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_a_rotation_of_equal_distances_is_no_drift(kind):
    corners = np.eye(10, dtype=kind)[RNG.integers(0, 10, 50)]
    grid = RNG.integers(0, 2, (50, 10)).astype(kind)
    for x in (corners, grid):
        turned = x @ rotation(10).astype(kind) + np.array(10, kind)
        assert representation_drift(x, turned) == pytest.approx(0.0, abs=1e-9)
        both = np.concatenate([x, turned], 1)
        assert feature_split(both, [(range(10), range(10, 20))]) == pytest.approx(1.0)


def test_half_precision_drifts_as_far_as_its_numbers():
    x = RNG.standard_normal((60, 512))
    halves = [jnp.asarray(y, jnp.bfloat16) for y in (x, x + 0.5 * RNG.standard_normal(x.shape))]
    exact = [np.asarray(half, np.float64) for half in halves]
    assert representation_drift(*halves) == pytest.approx(representation_drift(*exact), rel=0.05)


def test_drift_grows_with_the_way():
    way = RNG.standard_normal(X.shape)
    drifts = [representation_drift(X, X + size * way) for size in (0.0, 0.1, 0.5, 2.0, 100.0)]
    assert drifts == sorted(drifts)
    assert drifts[0] == 0.0
    assert 0.8 < drifts[-1] < 1.2


def test_a_split_between_copies_agrees_and_others_follow_the_definition():
    both = np.concatenate([X, X], 1)
    assert feature_split(both, [(range(12), range(12, 24))]) == pytest.approx(1.0)
    halves = [((0, 1, 2), (3, 4, 5)), ((0, 6), (1, 7))]
    wanted = [spearmanr(pdist(X[:, a]), pdist(X[:, b])).statistic for a, b in halves]
    assert feature_split(X, halves) == pytest.approx(np.mean(wanted), abs=1e-12)


def test_feature_split_depends_on_the_basis_where_no_distance_does():
    one_large = X * np.append(10.0, np.ones(11))
    spread = np.linalg.qr(np.c_[np.ones(12), RNG.standard_normal((12, 11))])[0]
    turned = one_large @ spread.T
    np.testing.assert_allclose(pdist(one_large), pdist(turned), rtol=1e-9)
    assert abs(feature_split(one_large)) < 0.15
    assert feature_split(turned) > 0.8


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ((X, X[:-1]), "same batch"),
        ((X[:2], X[:2]), "at least 3 examples"),
        ((X[:, 0], X), "before must be"),
        ((X, np.full_like(X, np.nan)), "not finite"),
    ],
)
def test_wrong_representations(wrong, match):
    with pytest.raises(ValueError, match=match):
        representation_drift(*wrong)


def test_wrong_splits():
    with pytest.raises(ValueError, match="two features"):
        feature_split(X[:, :1])
    with pytest.raises(ValueError, match="splits"):
        feature_split(X, 0)
    with pytest.raises(ValueError, match="splits"):
        feature_split(X, [])
