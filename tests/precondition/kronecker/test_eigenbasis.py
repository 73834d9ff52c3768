"""Bases and denominators of one leaf, against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.precondition.kronecker import eigenbasis
from fgo_jax.precondition.kronecker.second_moment import Denominator, scaled_noise
from fgo_jax.precondition.shared.leaves import bias_correction, held
from fgo_jax.precondition.shared.modes import Modes

SHAPE = (3, 4)
MODES = Modes(SHAPE, ((0,), (1,)))
KEEP, WARM, FRESH = 0, 1, 2


def spread(seed, size):
    root = np.random.default_rng(seed).standard_normal((size, size))
    return root @ root.T + 0.1 * np.eye(size)


@jax.jit
def refreshed(how, factors, bases, second, eigenvalues=()):
    """(bases, first moment, second moment, eigenvalues) of one stack."""
    moments = eigenbasis.Moments((FIRST,), (second,), (eigenvalues,))
    bases, moments = eigenbasis.refresh(
        how, (factors,), (bases,), [second], [MODES], moments, jnp.float32(0.5)
    )
    return bases[0], *(field[0] for field in moments)


FACTORS = tuple(jnp.float32(spread(seed, d)) for seed, d in enumerate(SHAPE))
IDENTITIES = tuple(jnp.eye(d) for d in SHAPE)
FIRST = jnp.cos(jnp.arange(12.0)).reshape(SHAPE)
MOMENTS = jnp.arange(12.0).reshape(SHAPE)


def test_a_fresh_basis_is_that_of_eigenvectors_with_the_largest_first():
    bases, _, moments, _ = refreshed(FRESH, FACTORS, IDENTITIES, MOMENTS)
    for basis, factor in zip(bases, FACTORS, strict=True):
        values = np.diag(basis.T @ factor @ basis)
        np.testing.assert_allclose(basis @ np.diag(values) @ basis.T, factor, atol=1e-4)
        assert (np.diff(values) <= 0).all()
    # A basis of its own: the moments keep their places.
    np.testing.assert_array_equal(moments, MOMENTS)


def test_a_warm_basis_is_one_step_of_orthogonal_iteration_with_moments_moved_alike():
    # Diagonal factors: the columns only change places, by permutations that are no exchanges.
    diagonals = np.array([1.0, 3.0, 2.0]), np.array([2.0, 4.0, 1.0, 3.0])
    factors = tuple(jnp.float32(np.diag(d)) for d in diagonals)
    bases, _, moments, _ = refreshed(WARM, factors, IDENTITIES, MOMENTS)
    orders = [np.argsort(-d) for d in diagonals]
    for basis, order in zip(bases, orders, strict=True):
        np.testing.assert_allclose(np.abs(basis), np.eye(len(order))[:, order], atol=1e-6)
    np.testing.assert_array_equal(moments, np.asarray(MOMENTS)[np.ix_(*orders)])


def test_a_warm_basis_turns_towards_the_eigenvectors():
    bases, *_ = refreshed(WARM, FACTORS, IDENTITIES, MOMENTS)
    for basis, factor in zip(bases, FACTORS, strict=True):
        order = np.argsort(-np.diag(factor))
        wanted = np.linalg.qr(np.float64(factor)[:, order])[0]
        np.testing.assert_allclose(np.abs(wanted.T @ basis), np.eye(len(factor)), atol=1e-4)


def test_without_a_refresh_nothing_changes():
    bases, first, moments, _ = refreshed(KEEP, FACTORS, IDENTITIES, MOMENTS)
    for basis, old in zip(bases, IDENTITIES, strict=True):
        np.testing.assert_array_equal(basis, old)
    np.testing.assert_array_equal(first, FIRST)
    np.testing.assert_array_equal(moments, MOMENTS)


@pytest.mark.parametrize("how", [WARM, FRESH])
def test_the_first_moment_is_the_same_gradient_in_the_new_basis(how):
    old = [jnp.linalg.qr(jnp.float32(spread(9, d)))[0] for d in SHAPE]
    (left, right), first, *_ = refreshed(how, FACTORS, tuple(old), MOMENTS)
    np.testing.assert_allclose(left @ first @ right.T, old[0] @ FIRST @ old[1].T, atol=1e-5)


def test_a_factor_of_zeros_keeps_its_basis_and_a_tiny_one_finds_its_own():
    # One cannot tell from a basis in which order columns of equal quotients come.
    turned = tuple(jnp.linalg.qr(factor)[0] for factor in FACTORS)
    zeros = tuple(jnp.zeros_like(factor) for factor in FACTORS)
    bases, *_ = refreshed(WARM, zeros, turned, MOMENTS)
    for basis, old in zip(bases, turned, strict=True):
        overlaps = np.abs(old.T @ basis)
        np.testing.assert_allclose(np.sort(overlaps, 0)[:-1], 0.0, atol=1e-5)
        np.testing.assert_allclose(overlaps.max(0), 1.0, atol=1e-5)
    tiny = tuple(1e-30 * factor for factor in FACTORS)
    for how in (WARM, FRESH):
        small, large = (refreshed(how, f, turned, MOMENTS)[0] for f in (tiny, FACTORS))
        for one, other in zip(small, large, strict=True):
            np.testing.assert_allclose(np.abs(one.T @ other), np.eye(len(one)), atol=1e-3)


def test_eigenvalues_are_the_quotients_of_the_unbiased_factor():
    start = tuple(jnp.zeros(d) for d in SHAPE)
    *_, values = refreshed(FRESH, FACTORS, IDENTITIES, MOMENTS, start)
    for found, factor in zip(values, FACTORS, strict=True):
        np.testing.assert_allclose(found, np.linalg.eigvalsh(factor / 0.5)[::-1], rtol=1e-4)


@pytest.mark.parametrize(("step", "how"), [(0, FRESH), (3, KEEP), (5, WARM), (10, WARM)])
def test_the_first_basis_is_fresh_and_later_ones_are_warm(step, how):
    assert int(eigenbasis.refresh_kind(jnp.int32(step), 5, (FACTORS,), ())) == how


def test_eigenvalues_that_are_all_zero_are_found_anew_at_once():
    values = tuple(jnp.zeros(d) for d in SHAPE)
    ones = tuple(jnp.ones(d) for d in SHAPE)
    zeros = tuple(jnp.zeros_like(factor) for factor in FACTORS)
    for step, keep in ((3, KEEP), (5, WARM)):
        kind = [
            int(eigenbasis.refresh_kind(jnp.int32(step), 5, (f,), (v,)))
            for f, v in ((FACTORS, values), (FACTORS, ones), (zeros, values))
        ]
        assert kind == [FRESH, keep, keep]


def test_factors_are_running_means_of_gram_matrices():
    g = np.random.default_rng(2).standard_normal(SHAPE)
    good = [jnp.ones((1, 1), bool)]
    ((left, right),) = eigenbasis.averaged((FACTORS,), [jnp.float32(g)], [MODES], good, 0.75)
    np.testing.assert_allclose(left, 0.75 * FACTORS[0] + 0.25 * g @ g.T, rtol=1e-5)
    np.testing.assert_allclose(right, 0.75 * FACTORS[1] + 0.25 * g.T @ g, rtol=1e-5)


B2, FACTOR_DECAY, EPS, DAMPING = 0.9, 0.8, 1e-3, 1e-2
MOMENT = np.random.default_rng(3).uniform(0.1, 1.0, SHAPE)


def denominator(step, power=0.5, centred=False, eigenvalues=(), factors=FACTORS, modes=MODES):
    made = Denominator(B2, FACTOR_DECAY, EPS, power, centred, DAMPING, 0.0)
    return made(jnp.float32(MOMENT), eigenvalues, factors, jnp.int32(step), modes)


@pytest.mark.parametrize("step", [1, 2, 50])
def test_the_root_of_an_unbiased_moment_is_damped_by_its_mean_at_the_first_step(step):
    v = MOMENT / (1 - B2**step)
    damping = 1.0 if step == 1 else DAMPING
    wanted = np.sqrt(v + damping * v.mean()) + EPS
    np.testing.assert_allclose(denominator(step), wanted, rtol=1e-5)
    without = denominator(step, modes=Modes(SHAPE, ()), factors=())
    np.testing.assert_allclose(without, np.sqrt(v) + EPS, rtol=1e-5)


@pytest.mark.parametrize("step", [1, 4, 500])
def test_an_inverse_of_few_samples_is_drawn_to_its_mean(step):
    v = MOMENT / (1 - B2**step)
    v = v + max(DAMPING, 1 / step) * v.mean() + EPS**2
    wanted = v * np.sqrt(np.mean(1 / v))
    np.testing.assert_allclose(denominator(step, power=1.0), wanted, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_eigenvalues_imply_a_moment_and_a_trace_that_outgrew_them_is_added(scale):
    step, unbiased = 3, 1 - FACTOR_DECAY**3
    # Both modes of a leaf have the same trace.
    values = [np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.5, 1.0, 0.5])]
    factors = tuple(jnp.float32(scale * unbiased * np.diag(v)) for v in values)
    eigenvalues = tuple(map(jnp.float32, values))
    v = np.multiply.outer(*values) / 6.0 + max(6 * scale - 12.0, 0.0) / MOMENT.size
    wanted = np.sqrt(v + max(DAMPING, 1 / step) * v.mean()) + EPS
    found = denominator(step, eigenvalues=eigenvalues, factors=factors)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_gradient_that_did_not_change_is_no_noise():
    g = jnp.float32(np.random.default_rng(4).standard_normal(SHAPE))
    good = [jnp.ones((1, 1), bool)]
    (noise,), (seen,) = scaled_noise([g], [g], [MODES], good)
    assert not np.any(noise)
    assert not np.any(seen)
    (noise,), (seen,) = scaled_noise([g], [2 * g], [MODES], good)
    assert np.all(seen)
    np.testing.assert_allclose(np.mean(np.square(noise)), 1.0, rtol=1e-5)


def test_updates_keep_the_gradients_scale_unless_centred():
    make = fgo.precondition.scale_by_kronecker_fisher
    assert make().keeps_scale
    assert not make(centred=True).keeps_scale


def test_moments_are_running_means_unbiased_from_the_first_step_on():
    transform = fgo.precondition.scale_by_kronecker_fisher(0.5, 0.75, eps=0.0, damping=0.0)
    grads = np.random.default_rng(5).standard_normal((3, 2))
    state, update = transform.init(jnp.zeros(2)), jax.jit(transform.update)
    for number, g in enumerate(grads, 1):
        found, state = update(jnp.float32(g), state)
        ages = np.arange(number)[::-1]
        mean = np.average(grads[:number], axis=0, weights=0.5**ages)
        square = np.average(grads[:number] ** 2, axis=0, weights=0.75**ages)
        np.testing.assert_allclose(found, mean / np.sqrt(square), rtol=1e-5)


def test_the_metric_is_the_identity_at_first_and_then_the_root_of_the_denominator():
    transform = fgo.precondition.scale_by_kronecker_fisher(0.0, 0.75, eps=0.0, damping=0.0)
    g = jnp.float32([2.0, -3.0])
    state = transform.init(g)
    np.testing.assert_array_equal(transform.metric(g, state), g)
    _, state = jax.jit(transform.update)(jnp.float32([4.0, 9.0]), state)
    np.testing.assert_allclose(transform.metric(g, state), [1.0, -1.0], rtol=1e-5)


def test_a_held_average_is_unbiased_as_it_was_before():
    value, decay = 3.0, 0.75
    for step in range(2, 6):
        before = value / bias_correction(decay, jnp.int32(step - 1))
        value = value * held(decay, jnp.int32(step))
        np.testing.assert_allclose(
            value / bias_correction(decay, jnp.int32(step)), before, rtol=1e-6
        )
    # Nothing was averaged before the first step.
    assert float(held(decay, jnp.int32(1))) == 1.0


def test_a_fresh_basis_holds_the_small_eigenvalues_of_a_large_factor():
    # The least is below a ten-thousandth of the trace, and 0.002 of the largest.
    turned = np.linalg.qr(spread(4, 400))[0]
    factor = jnp.float32(turned * np.geomspace(1.0, 0.002, 400) @ turned.T)
    basis = np.float64(jax.jit(eigenbasis._fresh)(factor, factor)[0])
    found = basis.T @ np.float64(factor) @ basis
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0.0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 3, 20])
def test_rounding_does_not_choose_the_basis_of_what_no_gradient_has_visited(rank):
    size = 40
    rows = np.random.default_rng(2).standard_normal((size, rank))
    factor = jnp.float32(rows @ rows.T)
    noise = np.random.default_rng(3).standard_normal((size, size)) * 1e-7 * np.abs(factor).max()
    modes = [Modes((size, size), ((0,),))]

    def fresh(factor):
        zeros = jnp.zeros((size, size))
        moments = eigenbasis.Moments((zeros,), (zeros,), ((),))
        start = ((jnp.eye(size),),), [zeros], modes, moments, jnp.float32(1.0)
        return np.asarray(eigenbasis.refresh(FRESH, ((factor,),), *start)[0][0][0])

    basis = fresh(factor)
    np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=1e-5)
    outside = rows.T @ basis[:, rank:]
    np.testing.assert_allclose(outside, 0.0, atol=1e-3)
    np.testing.assert_allclose(fresh(factor + noise + noise.T), basis, atol=1e-3)
    if rank == 0:
        np.testing.assert_array_equal(basis, np.eye(size))
