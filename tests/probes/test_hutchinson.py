"""Hutchinson's probe: unbiased moments, honest errors, and what it does with bad draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgo_jax.curvature.ggn import ggn
from fgo_jax.linalg.trees import vdot
from fgo_jax.probes.hutchinson import hutchinson
from fgo_jax.probes.probe import ProbeInputs

SPECTRUM = jnp.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05])
PARAMS = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}


def outer_products(params, batch):
    """The mean of g g^T over the rows [n, 8] of the batch, on a tree of parameters."""

    def matvec(v):
        flat = jnp.concatenate([v["a"].reshape(-1), v["b"]])
        product = jnp.mean((batch @ flat)[:, None] * batch, axis=0)
        return {"a": product[:6].reshape(2, 3), "b": product[6:]}

    return matvec


def diagonal(params, batch):
    """A fixed diagonal operator times the mean of the batch."""
    return lambda v: jax.tree.map(lambda leaf: jnp.mean(batch) * leaf, v)


def inputs(batch, seed=0, params=PARAMS, step=200):
    return ProbeInputs(None, None, params, batch, jax.random.key(seed), jnp.int32(step))


def raw_moments(state):
    """The moments of the whole operator in its own unit."""
    return state.moments[0] * state.unit[0] ** jnp.array([1, 2, 2])


@pytest.mark.parametrize("deflate", [0, 2])
def test_curvature_whose_squares_leave_float32_is_measured(deflate):
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (20, 20)))[0]
    matrix = rotation * jnp.linspace(0.1, 3.0, 20) @ rotation.T
    probe = hutchinson(lambda p, b: lambda v: p * (matrix @ v), examples=2, deflate=deflate)

    @jax.jit
    def read(scale):
        fresh = inputs(jnp.zeros((2, 1)), params=jnp.full(20, scale))
        return probe.read(probe.measure(fresh, probe.init(fresh.params)))

    plain = read(1.0)
    for scale in (1e-20, 1e-12, 1e-9, 1e8, 1e19):
        scaled = read(scale)
        for name, unit in (("trace", scale), ("intrinsic_dimension", 1.0)):
            for a, b in zip(scaled[name], plain[name], strict=True):
                np.testing.assert_allclose(a / unit, b, rtol=0.01, err_msg=f"{name} {scale}")
        # What float32 does not hold is unknown.
        known = 1e-15 < scale < 1e15
        assert np.isfinite(scaled["trace_square"]).all() == known


def test_moments_are_unbiased_over_vectors_and_examples():
    probe = hutchinson(outer_products, num_samples=2, examples=8, smoothing=0.0)
    mixing = jnp.linalg.qr(jax.random.normal(jax.random.key(7), (8, 8)))[0]

    @jax.jit
    @jax.vmap
    def draw(key):
        rows = jax.random.normal(key, (8, 8)) * jnp.sqrt(SPECTRUM) @ mixing.T
        read = probe.measure(
            inputs(rows)._replace(key=jax.random.fold_in(key, 1)), probe.init(PARAMS)
        )
        everything = outer_products(PARAMS, rows)
        signs = jax.random.rademacher(key, (8,), jnp.float32)
        product = everything({"a": signs[:6].reshape(2, 3), "b": signs[6:]})
        return raw_moments(read), vdot(product, product)

    moments, naive = draw(jax.random.split(jax.random.key(3), 2000))
    truth = jnp.array([SPECTRUM.sum(), SPECTRUM.sum() ** 2, jnp.sum(SPECTRUM**2)])
    errors = jnp.std(moments, axis=0) / 2000**0.5
    assert np.all(np.abs(moments.mean(0) - truth) < 3 * errors)
    # What the halves are for: one operator's square reads its sampling noise as spectrum,
    # here by (tr^2 + tr F^2) / n, a third of tr F^2 and ten standard errors.
    assert float(naive.mean() - truth[2]) > 10 * float(jnp.std(naive)) / 2000**0.5 / 3
    assert float(naive.mean()) > 1.3 * float(truth[2])


def test_errors_are_the_spread_over_vectors():
    rows = jax.random.normal(jax.random.key(0), (64, 8)) * jnp.sqrt(SPECTRUM)
    mixing = jnp.linalg.qr(jax.random.normal(jax.random.key(7), (8, 8)))[0]
    probe = hutchinson(outer_products, num_samples=16, examples=64)

    @jax.jit
    @jax.vmap
    def draw(key):
        fresh = inputs(rows @ mixing)._replace(key=key)
        return probe.read(probe.measure(fresh, probe.init(PARAMS)))

    read = draw(jax.random.split(jax.random.key(1), 2000))
    for name, estimate in read.items():
        spread = float(jnp.std(estimate.value))
        stated = float(jnp.sqrt(jnp.mean(estimate.error**2)))
        # First order in the ratio, and 16 vectors: a quarter either way. A skewed square's
        # is that of its interval's upper half.
        most = 1.7 if name == "trace_square" else 1.25
        assert 0.75 * spread < stated < most * spread, name


def test_numerator_and_denominator_are_averaged_apart():
    probe = hutchinson(outer_products, num_samples=4, examples=16, smoothing=0.25)
    alone = hutchinson(outer_products, num_samples=4, examples=16, smoothing=0.0)
    measure, single = jax.jit(probe.measure), jax.jit(alone.measure)
    state, moments, variances = probe.init(PARAMS), [], []
    for seed in range(3):
        rows = jax.random.normal(jax.random.key(seed), (16, 8)) + 1.0
        state = measure(inputs(rows, seed), state)
        one = single(inputs(rows, seed), alone.init(PARAMS))
        moments.append(raw_moments(one))
        variances.append(jnp.diagonal(one.covariance[0]) * one.unit[0] ** np.array([2, 4, 4]))
    weights = np.array([0.25**2, 0.25, 1.0]) / (0.25**2 + 0.25 + 1.0)
    trace, square, denominator = weights @ np.array(moments)
    read = probe.read(state)
    np.testing.assert_allclose(read["trace"].value, trace, rtol=1e-5)
    np.testing.assert_allclose(read["trace_square"].value, denominator, rtol=1e-5)
    np.testing.assert_allclose(read["intrinsic_dimension"].value, square / denominator, rtol=1e-5)
    error = np.sqrt(weights**2 @ np.array(variances))
    np.testing.assert_allclose(read["trace"].error, error[0], rtol=1e-4)
    assert int(state.evaluations) == 3


def test_deflation_is_unbiased_and_quiets_an_outlier():
    outlier = jnp.append(100.0, jnp.ones(199))

    def operator(params, batch):
        # Two halves that differ, so that no half's own square can stand for the product.
        return lambda v: (outlier + jnp.mean(batch)) * v

    params, batch = jnp.zeros(200), jnp.array([0.3, 0.3, 0.5, 0.5])
    first, second = outlier + 0.3, outlier + 0.5
    rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (200, 200)))[0]

    def rotated(params, batch):
        inner = operator(params, batch)
        return lambda v: rotation @ inner(rotation.T @ v)

    moments, stated = {}, {}
    for deflate in (0, 2):
        probe = hutchinson(rotated, 4, examples=4, smoothing=0.0, deflate=deflate)

        def draw(key, probe=probe):
            fresh = inputs(batch, params=params)._replace(key=key)
            state = probe.measure(fresh, probe.init(params))
            return raw_moments(state), state.covariance[0] * state.unit[0] ** 4

        keys = jax.random.split(jax.random.key(0), 60)
        run = jax.jit(lambda keys, draw=draw: jax.lax.map(draw, keys))
        moments[deflate], stated[deflate] = run(keys)
        trace = float(jnp.sum(first + second)) / 2
        truth = np.array([trace, jnp.sum(first) * jnp.sum(second), jnp.sum(first * second)])
        # Three standard errors, and the rounding of the two products' sum of 200 terms.
        allowed = 3 * np.std(moments[deflate], axis=0) / 60**0.5 + 1e-5 * truth
        assert (np.abs(np.mean(moments[deflate], axis=0) - truth) < allowed).all()
    quieter = np.std(moments[2], axis=0) < 0.1 * np.std(moments[0], axis=0)
    assert quieter.all()
    assert float(jnp.mean(stated[2][:, 2, 2])) < 0.01 * float(jnp.mean(stated[0][:, 2, 2]))


def test_groups_are_the_diagonal_blocks():
    rows = jax.random.normal(jax.random.key(0), (64, 8)) * jnp.sqrt(SPECTRUM) + 0.5
    halves = [part.T @ part / 32 for part in (rows[:32], rows[32:])]
    probe = hutchinson(outer_products, 400, examples=64, groups={"a": "a", "b": "b"})
    assert set(probe.signals) >= {"trace/a", "trace_square/b", "intrinsic_dimension/a"}
    read = probe.read(jax.jit(probe.measure)(inputs(rows), probe.init(PARAMS)))
    for suffix, those in (("", slice(0, 8)), ("/a", slice(0, 6)), ("/b", slice(6, 8))):
        first, second = (np.asarray(half[those, those], np.float64) for half in halves)
        truth = {
            "trace": (np.trace(first) + np.trace(second)) / 2,
            "trace_square": np.trace(first @ second),
            "intrinsic_dimension": np.trace(first) * np.trace(second) / np.trace(first @ second),
        }
        for name, value in truth.items():
            estimate = read[name + suffix]
            assert abs(float(estimate.value) - value) < 3 * float(estimate.error), name + suffix


def test_bad_draws_are_held_and_counted():
    probe = hutchinson(diagonal, examples=4, smoothing=0.0)
    measure = jax.jit(probe.measure)
    state = measure(inputs(jnp.ones(4)), probe.init(PARAMS))
    # The identity: every sign vector gives its trace of 8 exactly.
    assert float(probe.read(state)["intrinsic_dimension"].value) == pytest.approx(8)

    # Halves of opposite sign: a negative trace of the square is a result, no dimension.
    opposed = measure(inputs(jnp.array([1.0, 1.0, -1.0, -1.0]), 1), state)
    read = probe.read(opposed)
    assert float(read["intrinsic_dimension"].value) == pytest.approx(8)
    assert float(read["trace_square"].value) == pytest.approx(-8)
    assert (int(opposed.held), int(opposed.evaluations)) == (1, 2)

    # One that is not finite must not stay in the averages.
    broken = measure(inputs(jnp.array([1.0, jnp.nan, 1.0, 1.0])), state)
    assert int(broken.held) == 1
    jax.tree.map(np.testing.assert_array_equal, broken._replace(held=state.held), state)


def test_inner_products_flatten_no_leaf():
    # A reshape of a sharded leaf gathers it; optax.tree.vdot did so under JAX 0.10.
    a = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones(())}
    assert "reshape" not in str(jax.make_jaxpr(vdot)(a, a))
    assert float(vdot(a, a)) == 25
    assert float(vdot({}, {})) == 0


def test_nothing_is_known_before_the_first_measurement():
    probe = hutchinson(diagonal)
    assert all(np.isnan(x) for x in jax.tree.leaves(probe.read(probe.init(PARAMS))))


def test_cadence():
    probe = hutchinson(diagonal, every=3)
    due = [bool(probe.due(None, jnp.int32(step))) for step in range(8)]
    assert due == [False, False, False, True, False, False, True, False]


def test_runs_on_its_cadence_inside_a_compiled_loop_with_bfloat16_parameters():
    operator = ggn(lambda p, batch: batch["x"] @ p["w"] + p["b"][None])
    params = {"w": jnp.zeros((3, 4), jnp.bfloat16), "b": jnp.zeros(4, jnp.bfloat16)}
    batch = {"x": jax.random.normal(jax.random.key(0), (16, 3), jnp.bfloat16)}
    probe = hutchinson(operator, every=3, examples=8, batch_size=16)
    start = probe.init(params)

    def step(state, t):
        fresh = inputs(batch, params=params)
        fresh = fresh._replace(key=jax.random.fold_in(fresh.key, t), step=t)
        return jax.lax.cond(
            probe.due(state, t), probe.measure, lambda _, old: old, fresh, state
        ), None

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        end, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(10, dtype=jnp.int32)))(start)
    assert int(end.evaluations) == 3
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), start, end)
    assert all(jax.tree.leaves(same))
    # Uniform softmax: H = (I - 1/4) / 4, hence tr F = 3/4 (1 + E |x|^2), here of 8 examples.
    x = batch["x"][:8].astype(jnp.float32)
    read = probe.read(end)["trace"]
    truth = 0.75 * float(1 + jnp.mean(jnp.sum(x**2, -1)))
    assert abs(float(read.value) - truth) < 3 * float(read.error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_samples=1), "num_samples must be an integer >= 2"),
        (dict(every=0), "every must be an integer >= 1"),
        (dict(examples=3), "pass 4"),
        (dict(examples=1), "examples must be an integer >= 2"),
        (dict(examples=8, batch_size=4), "examples=8 cannot be read from batch_size=4"),
        (dict(smoothing=1.0), r"smoothing must lie in \[0, 1\)"),
        (dict(deflate=-1), "deflate must be an integer >= 0"),
        (dict(deflate=1, groups={"a": "a"}), "deflate=0 with groups="),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        hutchinson(diagonal, **arguments)


@pytest.mark.parametrize(
    ("arguments", "batch", "message"),
    [
        (dict(batch_size=8), jnp.ones(6), "built for batch_size=8 but got 6 examples"),
        (dict(examples=8), jnp.ones(6), "reads 8 examples but batch has 6.*at most 6"),
        ({}, jnp.ones(1), "reads 2 examples but batch has 1"),
        ({}, {}, "batch has no arrays"),
        ({}, {"x": jnp.ones(4), "y": jnp.ones(3)}, r"\['x'\] has 4, \['y'\] has 3"),
        ({}, {"x": jnp.ones(4), "k": jax.random.key(0)}, r"\['k'\] has no axis"),
    ],
)
def test_batches_that_do_not_fit(arguments, batch, message):
    probe = hutchinson(diagonal, **arguments)
    with pytest.raises(ValueError, match=message):
        probe.check(inputs(batch))


@pytest.mark.parametrize(("size", "read"), [(2, 2), (15, 2), (16, 2), (47, 4), (64, 8)])
def test_an_eighth_of_the_batch_by_default(size, read):
    seen = []

    def operator(params, batch):
        seen.append(batch.shape[0])
        return diagonal(params, batch)

    probe = hutchinson(operator)
    jax.eval_shape(probe.measure, inputs(jnp.ones(size)), probe.init(PARAMS))
    assert seen == [read // 2, read // 2]


def test_one_outlier_is_covered_as_often_as_it_says():
    eigenvalues = jnp.full(100, 0.1).at[0].set(50.0)
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (100, 100)))[0]
    matrix = (basis * eigenvalues) @ basis.T
    probe = hutchinson(lambda p, b: lambda v: matrix @ v, 4, examples=2, smoothing=0.0)
    point = jnp.zeros(100)

    def draw(key):
        inputs = ProbeInputs(None, None, point, jnp.ones((2, 1)), key, jnp.int32(0))
        return probe.read(probe.measure(inputs, probe.init(point)))

    read = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(1), 2000))
    total, square = float(eigenvalues.sum()), float(jnp.square(eigenvalues).sum())
    for name, truth, covered in (
        ("trace", total, 0.82),
        ("trace_square", square, 0.92),
        ("intrinsic_dimension", total**2 / square, 0.83),
    ):
        inside = jnp.abs(read[name].value - truth) <= 1.96 * read[name].error
        assert float(inside.mean()) == pytest.approx(covered, abs=0.04), name


def test_complex_products_are_refused():
    probe = hutchinson(lambda p, b: lambda v: (1 + 2j) * v, examples=2)
    point = jnp.ones(3, jnp.complex64)
    inputs = ProbeInputs(None, None, point, jnp.ones((2, 1)), jax.random.key(0), jnp.int32(0))
    with pytest.raises(ValueError, match="two parameters"):
        jax.eval_shape(probe.measure, inputs, probe.init(point))
