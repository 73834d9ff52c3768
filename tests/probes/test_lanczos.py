"""Lanczos: its defining identity, its breakdown, and its counts against dense spectra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from fgo_jax.curvature.ggn import ggn
from fgo_jax.linalg import sums
from fgo_jax.linalg.krylov import count_eigenvalues, krylov_space
from fgo_jax.probes.lanczos import SIGNALS, lanczos
from fgo_jax.probes.probe import ProbeInputs

BATCH = jnp.zeros((8, 1))


def tree(flat):
    return {"a": flat[:6].reshape(2, 3), "b": flat[6:]}


def flat(vector):
    return jnp.concatenate([vector["a"].reshape(-1), vector["b"]])


def symmetric(eigenvalues, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(eigenvalues.size,) * 2))[0]
    return jnp.asarray(q * eigenvalues @ q.T, jnp.float32)


def inputs(params, batch=BATCH, seed=0):
    return ProbeInputs(None, None, params, batch, jax.random.key(seed), jnp.int32(200))


@functools.partial(jax.jit, static_argnames=("seeds", "num_starts", "num_steps"))
def read_diagonal(eigenvalues, seeds=30, num_starts=2, num_steps=12):
    """Readings of a diagonal operator (all that Lanczos sees are the eigenvalues)."""
    probe = lanczos(
        lambda params, batch: lambda v: eigenvalues * v, num_starts=num_starts, num_steps=num_steps
    )

    @jax.vmap
    def draw(key):
        fresh = inputs(jnp.zeros_like(eigenvalues))._replace(key=key)
        return probe.read(probe.measure(fresh, probe.init(None)))

    return draw(jax.random.split(jax.random.key(5), seeds))


@jax.jit
def eight_steps(matrix, start):
    """On a tree of two leaves, so that no test depends on a flat vector."""
    block = jax.tree.map(lambda leaf: leaf[None], tree(start))
    return krylov_space(lambda v: tree(matrix @ flat(v)), block, 8)


def test_satisfies_the_lanczos_relation():
    a = symmetric(np.geomspace(10.0, 0.01, 30))
    result = jax.device_get(eight_steps(a, jax.random.normal(jax.random.key(1), (30,))))
    q = np.concatenate([result.basis["a"].reshape(8, -1), result.basis["b"]], axis=1)
    t = result.matrix
    last = np.concatenate([result.residual["a"].reshape(-1), result.residual["b"][0]])
    residual = np.outer(last, result.coupling[0])
    # Products of size 10, each with some ten roundings of 6e-8.
    np.testing.assert_allclose(a @ q.T - q.T @ t, residual, atol=2e-5)
    np.testing.assert_allclose(q @ q.T, np.eye(8), atol=2e-6)
    np.testing.assert_allclose(q @ last, np.zeros(8), atol=2e-5)
    assert result.valid.all()


def test_stays_orthogonal_once_eigenvalues_have_converged():
    # Without reorthogonalisation the converged top comes back as copies of itself.
    eigenvalues = jnp.concatenate([jnp.array([1e4, 1e3]), jnp.linspace(0.1, 1.0, 200)])
    result = jax.jit(lambda v: krylov_space(lambda w: eigenvalues * w, v, 24))(jnp.ones((1, 202)))
    # One rounding of the top product, 1e4 * 6e-8, relative to betas of about 0.2.
    np.testing.assert_allclose(result.basis @ result.basis.T, np.eye(24), atol=1e-5)


def test_rank_three_stops_cleanly():
    a = symmetric(np.array([5.0, 3.0, 1.0] + [0.0] * 27))
    result = jax.device_get(eight_steps(a, jax.random.normal(jax.random.key(2), (30,))))
    # Three directions and the null space: four distinct eigenvalues.
    assert result.valid.tolist() == [True] * 4 + [False] * 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    for masked in (result.matrix[4:], result.coupling, result.basis["b"][4:]):
        np.testing.assert_array_equal(masked, 0)
    counted = count_eigenvalues(result.matrix[None], result.coupling[None], 30)
    np.testing.assert_allclose(counted.ritz[0, :4], [5.0, 3.0, 1.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(counted.counts[0, :3], 1.0)


def test_a_zero_start_and_a_zero_operator_give_zeros():
    nothing = eight_steps(jnp.eye(30), jnp.zeros(30))
    assert not np.any(nothing.valid)
    zero = eight_steps(jnp.zeros((30, 30)), jnp.ones(30))
    assert zero.valid.tolist() == [True] + [False] * 7
    np.testing.assert_array_equal(zero.matrix, 0)


def test_flattens_no_leaf_and_calls_no_host():
    block = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 5))}
    jaxpr = str(jax.make_jaxpr(lambda v: krylov_space(lambda w: w, v, 3))(block))
    assert "reshape" not in jaxpr  # of a sharded leaf, it would be a gather
    assert "callback" not in jaxpr


def test_against_the_dense_ggn_of_a_network():
    def predict(params, batch):
        return jnp.tanh(batch @ params["w1"]) @ params["w2"]

    keys = jax.random.split(jax.random.key(4), 3)
    params = {
        "w1": jax.random.normal(keys[0], (6, 10)),
        "w2": jax.random.normal(keys[1], (10, 4)),
    }
    batch = jax.random.normal(keys[2], (64, 6))
    operator = ggn(predict)
    vector, unravel = ravel_pytree(params)

    @jax.jit
    def columns():
        matvec = operator(params, batch[:32])
        return jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(vector.size))

    eigenvalues = jnp.asarray(np.linalg.eigvalsh(columns()))
    probe = lanczos(operator, num_steps=16, num_starts=8, examples=32)
    state = jax.jit(probe.measure)(inputs(params, batch), probe.init(params))
    read = probe.read(state)
    np.testing.assert_allclose(read["top_eigenvalue"].value, eigenvalues[-1], rtol=1e-4)
    truth = {
        "trace": eigenvalues.sum(),
        "intrinsic_dimension": sums.participation_ratio(eigenvalues),
        "energy_rank": sums.energy_rank(eigenvalues),
    }
    for name, value in truth.items():
        # One for the rank, a whole number that is estimated by a fractional one.
        allowance = 1.0 if name == "energy_rank" else 0.0
        assert abs(read[name].value - value) < 3 * read[name].error + allowance, name
    np.testing.assert_allclose(
        read["energy_fraction"].value, read["energy_rank"].value / 100, rtol=1e-6
    )


# All of one size, so that they share one compilation.
SPECTRA = {
    "outliers, bulk and null space": np.r_[100, 50, 20, 10, np.geomspace(1, 1e-3, 200), [0] * 796],
    "geometric": np.geomspace(1, 1e-4, 1000),
    "outliers and a flat bulk": np.r_[100, 50, 30, np.ones(997)],
    "uniform": np.linspace(0, 1, 1000),
}
SPECTRA = {name: jnp.asarray(values, jnp.float32) for name, values in SPECTRA.items()}


@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name):
    eigenvalues = SPECTRA[name]
    read = read_diagonal(eigenvalues)
    truth = {
        "trace": eigenvalues.sum(),
        "intrinsic_dimension": sums.participation_ratio(eigenvalues),
        "energy_rank": sums.energy_rank(eigenvalues),
        "top_eigenvalue": eigenvalues.max(),
    }
    for signal, value in truth.items():
        mean, spread = float(read[signal].value.mean()), float(read[signal].value.std())
        # 2 % for the model of the bulk and for edges that 12 products do not resolve.
        assert abs(mean - value) < 3 * spread / 30**0.5 + 0.02 * value, signal


def test_outliers_are_counted_and_not_weighed():
    # By weights alone each of the four would count as a chi-square draw: 40 % on the trace.
    trace = read_diagonal(SPECTRA["outliers, bulk and null space"])["trace"].value
    assert float(trace.std()) < 0.05 * float(trace.mean())


def test_a_multiple_eigenvalue_keeps_its_weight():
    identity = read_diagonal(2.0 * jnp.ones(1000))
    np.testing.assert_allclose(identity["energy_rank"].value, 900, rtol=1e-4)
    np.testing.assert_allclose(identity["trace"].value, 2000, rtol=1e-4)
    # 5 tens, 20 ones and zeros: the rank is 18, in a Krylov space of three dimensions.
    repeated = jnp.array([10.0] * 5 + [1.0] * 20 + [0.0] * 975)
    rank = read_diagonal(repeated)["energy_rank"].value
    assert abs(float(rank.mean()) - 18) < 3 * float(rank.std()) / 30**0.5


def test_small_operators_are_solved_exactly_and_one_start_has_no_error():
    read = read_diagonal(jnp.array([9.0, 1.0, 0.5, 0.25]), num_starts=1, num_steps=5)
    np.testing.assert_allclose(read["trace"].value, 10.75, rtol=1e-5)
    np.testing.assert_allclose(read["energy_rank"].value, 2.0, rtol=1e-5)
    assert all(np.isnan(estimate.error).all() for estimate in read.values())


def test_eigenvalues_whose_squares_leave_float32_are_measured():
    values = jnp.array([9.0, 5.0, *np.linspace(0.1, 1.0, 30)], jnp.float32)
    plain = read_diagonal(values, seeds=2)
    for scale in (1e-20, 1e20):
        read = read_diagonal(scale * values, seeds=2)
        for name in SIGNALS:
            unit = scale if name in ("trace", "top_eigenvalue") else 1.0
            for a, b in zip(read[name], plain[name], strict=True):
                np.testing.assert_allclose(a / unit, b, rtol=1e-3, atol=1e-4)


def test_a_measurement_without_a_spectrum_is_held():
    probe = lanczos(lambda params, batch: lambda v: jnp.mean(batch) * v, num_steps=3, examples=2)
    measure = jax.jit(probe.measure)
    before = measure(inputs(jnp.zeros(5), jnp.ones(2)), probe.init(None))
    assert int(before.held) == 0
    for factor in (0.0, jnp.nan):
        after = measure(inputs(jnp.zeros(5), factor * jnp.ones(2)), before)
        assert int(after.held) == 1
        jax.tree.map(np.testing.assert_array_equal, after._replace(held=before.held), before)


def test_runs_on_its_cadence_inside_a_compiled_loop():
    operator = ggn(lambda p, batch: batch @ p, "squared_error")
    params = jnp.zeros((3, 2), jnp.bfloat16)
    batch = jax.random.normal(jax.random.key(0), (16, 3), jnp.bfloat16)
    probe = lanczos(operator, num_steps=3, every=4, batch_size=16)
    start = probe.init(params)

    def step(state, t):
        fresh = inputs(params, batch)
        fresh = fresh._replace(key=jax.random.fold_in(fresh.key, t), step=t)
        return jax.lax.cond(
            probe.due(state, t), probe.measure, lambda _, old: old, fresh, state
        ), None

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        end, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(9, dtype=jnp.int32)))(start)
    assert (int(end.evaluations), int(end.held)) == (2, 0)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), start, end)
    assert all(jax.tree.leaves(same))


def test_counts_more_parameters_than_an_int32_holds():
    probe = lanczos(lambda params, batch: lambda v: v, num_steps=2)
    huge = jax.ShapeDtypeStruct((60_000, 60_000), jnp.float32)
    fresh = inputs(huge)
    state = jax.eval_shape(probe.measure, fresh, probe.init(huge))
    assert state.readings.shape == (len(SIGNALS),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_steps=0), "num_steps must be an integer >= 1"),
        (dict(num_starts=0), "num_starts must be an integer >= 1"),
        (dict(block_size=0), "block_size must be an integer >= 1"),
        (dict(num_steps=3, block_size=4), "num_steps= of at least 4"),
        (dict(every=-1), "every must be an integer >= 1"),
        (dict(examples=0), "examples must be an integer >= 1"),
        (dict(energy=0.0), r"energy must lie in \(0, 1\]"),
        (dict(examples=8, batch_size=4), "pass at most 4"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        lanczos(lambda params, batch: lambda v: v, **arguments)


def test_a_batch_of_another_size_is_an_error():
    probe = lanczos(lambda params, batch: lambda v: v, batch_size=16)
    with pytest.raises(ValueError, match=r"batch_size=16 but got 8.*batch_size=None"):
        probe.check(inputs(jnp.zeros(3)))


REPEATED = np.r_[[10.0] * 5, [1.0] * 20, [0.0] * 75]


@functools.partial(jax.jit, static_argnames=("block_size", "num_steps", "num_starts", "draws"))
def read_rotated(matrix, block_size, num_steps, num_starts, draws):
    probe = lanczos(
        lambda params, batch: lambda v: matrix @ v,
        num_steps=num_steps,
        num_starts=num_starts,
        block_size=block_size,
    )
    params = jnp.zeros(matrix.shape[0])

    def draw(key):
        state = probe.measure(inputs(params)._replace(key=key), probe.init(params))
        return probe.read(state)

    return jax.lax.map(draw, jax.random.split(jax.random.key(3), draws))


def test_a_block_counts_repeated_eigenvalues_exactly():
    matrix = symmetric(REPEATED)
    assert float(sums.energy_rank(jnp.array(REPEATED))) == 18
    # Wider than every multiplicity above zero: 5 + 20 + 22 products exhaust the space.
    read = read_rotated(matrix, block_size=22, num_steps=50, num_starts=2, draws=4)
    np.testing.assert_allclose(read["energy_rank"].value, 18, atol=1e-3)
    np.testing.assert_allclose(read["trace"].value, 70, rtol=1e-4)
    np.testing.assert_allclose(read["intrinsic_dimension"].value, 4900 / 520, rtol=1e-4)
    # Wider than the five: these are counted, the twenty weighed by what eight vectors show.
    read = read_rotated(matrix, block_size=8, num_steps=24, num_starts=4, draws=20)
    covered = np.abs(read["energy_rank"].value - 18) <= 1.96 * read["energy_rank"].error
    assert covered.mean() >= 0.9
    assert float(read["energy_rank"].value.std()) < 3


def test_one_vector_states_the_error_of_its_stochastic_count():
    matrix = symmetric(np.r_[[3.0] * 30, [1.0] * 70])  # rank_.9: 30 * 3 + 54 of 160, hence 84
    read = read_rotated(matrix, block_size=1, num_steps=4, num_starts=8, draws=50)["energy_rank"]
    truth = float(sums.energy_rank(jnp.r_[jnp.full(30, 3.0), jnp.ones(70)]))
    covered = np.abs(read.value - truth) <= 1.96 * read.error
    assert covered.mean() >= 0.9
    assert float(jnp.median(read.error)) > 0


@pytest.mark.parametrize("block_size", [3, 12])
def test_a_block_on_a_rank_three_operator_stops_cleanly(block_size):
    matrix = symmetric(np.r_[[5.0, 3.0, 1.0], [0.0] * 27])
    read = read_rotated(matrix, block_size=block_size, num_steps=20, num_starts=2, draws=2)
    np.testing.assert_allclose(read["energy_rank"].value, 3, atol=1e-3)
    np.testing.assert_allclose(read["trace"].value, 9, rtol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(read))


def test_a_block_wider_than_the_space():
    read = read_rotated(jnp.diag(jnp.array([2.0, 2.0, 1.0])), 5, 8, num_starts=2, draws=1)
    np.testing.assert_allclose(read["trace"].value, 5, rtol=1e-5)
    np.testing.assert_allclose(read["energy_rank"].value, 3, atol=1e-3)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.r_[100, 50, 20, 10, 5, np.geomspace(1, 0.01, 55), np.zeros(60)],
        np.r_[np.geomspace(30, 0.1, 40), np.zeros(80)],
    ],
    ids=["outliers", "null space"],
)
def test_rank_of_a_dense_operator(eigenvalues):
    matrix = symmetric(eigenvalues)
    truth = float(sums.energy_rank(jnp.asarray(eigenvalues)))
    read = read_rotated(matrix, block_size=1, num_steps=45, num_starts=2, draws=3)
    # All that holds nine tenths of the trace has converged: counted, not drawn.
    np.testing.assert_allclose(read["energy_rank"].value, truth, atol=0.5)
