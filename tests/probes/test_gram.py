"""Gram matrices of gradients: unbiased where the naive ratio is not, with errors that cover."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.probes.probe import ProbeInputs
from tests.problems import mlp, mlp_batch, mlp_params

DRAWS = 500


def inner(params, example):
    """A loss whose gradient is the example."""
    return jnp.vdot(params, example)


ROWS = fgo.probes.example_gradients(inner)


def inputs(params, batch, seed=0):
    return ProbeInputs(None, None, params, batch, jax.random.key(seed), jnp.int32(200))


def geometric(ratio, size):
    """A spectrum with participation ratio `ratio`, (1 + r) / (1 - r), up to its tail."""
    return ((ratio - 1) / (ratio + 1)) ** jnp.arange(size)


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw_many(eigenvalues, n, draws=DRAWS):
    """The first two moments, the reading and the naive ratio of many draws of n rows."""
    probe = fgo.probes.gram(ROWS, examples=n, smoothing=0.0)
    params = jnp.zeros(eigenvalues.size)
    start = probe.init(params)

    def draw(key):
        rows = jax.random.normal(key, (n, eigenvalues.size)) * jnp.sqrt(eigenvalues)
        state = probe.measure(inputs(params, 0.5 + rows), start)
        k = rows @ rows.T
        # The moments are in a draw's own unit, its trace.
        sums = state.moments[0, :2] * state.unit[0] ** 2
        return sums, probe.read(state)["intrinsic_dimension"], jnp.sum(k**2) / jnp.trace(k) ** 2

    # One after the other: batched decompositions can wait for each other for ever on CPU.
    return jax.lax.map(draw, jax.random.split(jax.random.key(1), draws))


@pytest.mark.slow
@pytest.mark.parametrize("n", [16, 32, 64])
@pytest.mark.parametrize("truth", [25, 125])
def test_dimension_against_the_truth_and_the_naive_ratio(truth, n):
    eigenvalues = geometric(truth, 375)  # both in one program
    sums, read, naive = draw_many(eigenvalues, n)
    truth = float(fgo.linalg.participation_ratio(eigenvalues))
    numerator, denominator = sums.mean(0)
    assert float(numerator / denominator) == pytest.approx(truth, rel=0.05)
    # Chun et al.: 1 / n + 1 / Q + 1 / PR, of which 1 / Q is for entries of a row that are
    # not read; here all are.
    assert float(naive.mean()) == pytest.approx(1 / n + 1 / truth, rel=0.05)
    assert 1 / float(naive.mean()) < 0.75 * truth
    covered = np.abs(read.value - truth) <= 1.96 * read.error
    assert covered.mean() >= 0.9
    # No error is so wide that it covers anything.
    assert float(jnp.median(read.error)) < 0.6 * truth


def test_smoothed_measurements_are_one_ratio_of_averages():
    eigenvalues = geometric(25, 100)
    probe = fgo.probes.gram(ROWS, examples=12, smoothing=0.75)
    alone = fgo.probes.gram(ROWS, examples=12, smoothing=0.0)
    measure, single = jax.jit(probe.measure), jax.jit(alone.measure)
    params = jnp.zeros(100)
    state, moments = probe.init(params), []
    for seed in range(3):
        rows = jax.random.normal(jax.random.key(seed), (12, 100)) * jnp.sqrt(eigenvalues)
        state = measure(inputs(params, rows), state)
        one = single(inputs(params, rows), alone.init(params))
        moments.append(one.moments[0] * one.unit[0] ** np.array([2, 2, 1, 1]))
    weights = np.array([0.75**2, 0.75, 1.0]) / (0.75**2 + 0.75 + 1.0)
    a, b, trace, _ = weights @ np.array(moments)
    read = probe.read(state)
    np.testing.assert_allclose(read["intrinsic_dimension"].value, a / b, rtol=1e-4)
    np.testing.assert_allclose(read["trace"].value, trace, rtol=1e-5)
    assert int(state.evaluations) == 3


def micro_batches(size):
    def rows_fn(params, batch):
        return jnp.mean(batch.reshape(-1, size, batch.shape[-1]), axis=1)

    return rows_fn


def test_the_size_of_micro_batches_does_not_matter():
    eigenvalues, params = geometric(25, 100), jnp.zeros(100)
    batch = 0.5 + jax.random.normal(jax.random.key(0), (512, 100)) * jnp.sqrt(eigenvalues)
    reads = {}
    for size in (1, 4, 8):
        probe = fgo.probes.gram(micro_batches(size), examples=512 // 2, row_size=size)
        reads[size] = probe.read(jax.jit(probe.measure)(inputs(params, batch), probe.init(params)))
    truth = {
        "intrinsic_dimension": 25.0,
        "trace": float(eigenvalues.sum()),
        "noise_scale": float(eigenvalues.sum()) / 25.0,  # of |0.5 * ones(100)|^2
    }
    for name, value in truth.items():
        for read in reads.values():
            assert abs(float(read[name].value) - value) < 2.5 * float(read[name].error), name
    # The rows' own top eigenvalue, brought back to one example; biased up, more so by few rows.
    tops = [float(read["top_eigenvalue"].value) for read in reads.values()]
    assert 0.8 < tops[0] < tops[1] < tops[2] < 1.0 + 2 * truth["trace"] * 8 / 256


def test_the_empirical_fisher_holds_the_mean():
    rows = 1.0 + jax.random.normal(jax.random.key(0), (400, 4))
    probe = fgo.probes.gram(ROWS, examples=400, centred=False)
    read = probe.read(jax.jit(probe.measure)(inputs(jnp.zeros(4), rows), probe.init(None)))
    # E gg^T = I + 11^T: eigenvalues 5, 1, 1, 1.
    for name, truth in (
        ("trace", 8.0),
        ("intrinsic_dimension", 64 / 28),
        ("noise_scale", 1.0),
        ("top_eigenvalue", 5.0),
    ):
        assert abs(float(read[name].value) - truth) < 3 * float(read[name].error), name
    assert float(read["energy_rank"].value) == 4
    assert np.isfinite(read["energy_rank"].error)  # 400 rows of four entries have no ceiling


@pytest.mark.parametrize("centred", [True, False])
def test_noise_far_below_the_mean_gradient_is_measured_as_without_it(centred):
    noise = jax.random.normal(jax.random.key(0), (64, 20))
    rows = 1e4 + noise
    probe = fgo.probes.gram(lambda p, b: b, examples=64, centred=centred)
    read = probe.read(jax.jit(probe.measure)(inputs(None, rows), probe.init(None)))
    exact = np.asarray(rows, np.float64)
    trace, signal = np.trace(np.cov(exact.T)), np.square(exact.mean(0)).sum()
    np.testing.assert_allclose(read["noise_scale"].value, trace / signal, rtol=1e-3)
    if centred:
        alone = probe.read(jax.jit(probe.measure)(inputs(None, noise), probe.init(None)))
        np.testing.assert_allclose(read["trace"].value, trace, rtol=1e-3)
        for name in ("intrinsic_dimension", "trace", "top_eigenvalue", "energy_rank"):
            np.testing.assert_allclose(read[name], alone[name], rtol=1e-2, err_msg=name)
    else:
        np.testing.assert_allclose(read["trace"].value, trace + signal, rtol=1e-3)
        np.testing.assert_allclose(read["intrinsic_dimension"].value, 1.0, rtol=1e-3)


def test_the_top_eigenvalue_of_white_noise_is_as_much_too_large_as_it_says():
    n, size = 32, 200
    probe = fgo.probes.gram(lambda p, b: b, examples=n)

    def draw(key):
        rows = jax.random.normal(key, (n, size))
        return probe.read(probe.measure(inputs(None, rows), probe.init(None)))["top_eigenvalue"]

    read = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), 20))
    excess = size / n + 2 * (size / n) ** 0.5
    assert float(read.value.mean()) - 1 == pytest.approx(excess, rel=0.05)


def test_the_two_parts_of_complex_rows_count_alike():
    parts = 1.0 + jax.random.normal(jax.random.key(0), (2, 16, 6))
    probe = fgo.probes.gram(lambda p, b: b, examples=16)
    reads = [
        probe.read(jax.jit(probe.measure)(inputs(None, rows), probe.init(None)))
        for rows in (jnp.concatenate(parts, axis=1), jax.lax.complex(*parts))
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), *reads)


def test_half_precision_rows_far_from_zero_keep_their_noise():
    rows = (300 + jax.random.normal(jax.random.key(0), (64, 20))).astype(jnp.float16)
    probe = fgo.probes.gram(lambda p, b: b, examples=64)
    read = probe.read(jax.jit(probe.measure)(inputs(None, rows), probe.init(None)))
    trace = np.trace(np.cov(np.asarray(rows, np.float64).T))
    np.testing.assert_allclose(read["trace"].value, trace, rtol=1e-3)


def test_a_rank_near_its_ceiling_is_not_trusted_and_one_below_is():
    probe = fgo.probes.gram(ROWS, examples=32)
    for eigenvalues, trusted in ((jnp.ones(500), False), (0.5 ** jnp.arange(500.0), True)):
        rows = jax.random.normal(jax.random.key(0), (32, 500)) * jnp.sqrt(eigenvalues)
        state = jax.jit(probe.measure)(inputs(jnp.zeros(500), rows), probe.init(None))
        read = probe.read(state)
        assert float(state.rank_ceiling) == pytest.approx(26, abs=1)
        for name in ("energy_rank", "energy_fraction"):
            assert bool(np.isfinite(read[name].error)) == trusted
    assert abs(float(read["energy_rank"].value) - 4) <= 1


def example_loss(params, example):
    logits = mlp(params, example["x"][None])[0]
    return -jax.nn.log_softmax(logits)[example["y"]]


def test_groups_chunks_and_leaves_of_any_shape():
    params, batch = mlp_params(), mlp_batch(0, size=48)
    groups = fgo.probes.layer_groups(params)
    reads = []
    for chunk in (None, 8):
        probe = fgo.probes.gram(
            fgo.probes.example_gradients(example_loss, chunk), examples=24, groups=groups
        )
        state = jax.jit(probe.measure)(inputs(params, batch), probe.init(params))
        reads.append(probe.read(state))
        assert set(reads[-1]) == set(probe.signals)
    # Chunks change the order of sums only.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3), *reads)
    read = reads[0]
    parts = read["trace/hidden"].value + read["trace/out"].value
    np.testing.assert_allclose(parts, read["trace"].value, rtol=1e-5)
    alone = fgo.probes.gram(
        lambda p, b: fgo.probes.example_gradients(example_loss)(p, b)["out"], examples=24
    )
    state = jax.jit(alone.measure)(inputs(params, batch), alone.init(params))
    for name in ("intrinsic_dimension", "trace", "noise_scale"):
        np.testing.assert_allclose(read[f"{name}/out"], alone.read(state)[name], rtol=2e-3)


def test_bad_draws_are_held_and_counted():
    probe = fgo.probes.gram(ROWS, examples=8)
    measure = jax.jit(probe.measure)
    params, rows = jnp.zeros(6), jax.random.normal(jax.random.key(0), (8, 6))
    state = measure(inputs(params, rows), probe.init(params))
    assert (int(state.evaluations), int(state.held)) == (1, 0)
    for bad in (jnp.zeros((8, 6)), rows.at[0, 0].set(jnp.nan)):
        after = measure(inputs(params, bad), state)
        assert int(after.held) == 1
        jax.tree.map(np.testing.assert_array_equal, after._replace(held=state.held), state)
    # Noise far above the mean: where |E g|^2 comes out negative, its scale is not trusted.
    opposite = jnp.concatenate([rows[:4], -rows[:4]])
    read = probe.read(measure(inputs(params, opposite), probe.init(params)))
    assert np.isinf(read["noise_scale"].error)
    assert np.isnan(read["noise_scale"].value)


def test_tiny_gradients_do_not_underflow():
    eigenvalues, params = geometric(25, 100), jnp.zeros(100)
    rows = jax.random.normal(jax.random.key(0), (32, 100)) * jnp.sqrt(eigenvalues)
    probe = fgo.probes.gram(ROWS, examples=32)
    measure = jax.jit(probe.measure)
    plain, tiny = (
        probe.read(measure(inputs(params, scale * rows), probe.init(params)))
        for scale in (1.0, 1e-6)
    )
    np.testing.assert_allclose(tiny["intrinsic_dimension"], plain["intrinsic_dimension"], rtol=1e-3)


def test_clipping_leaves_the_probes_gradients_raw():
    params = {"w": jnp.zeros(50)}

    def run(clip_norm):
        tx = fgo.phased(
            [fgo.acquisition(1e-3)], [], fgo.probes.gradient_stream(pairs=8, every=2),
            clip_norm=clip_norm,
        )  # fmt: skip

        def step(state, key):
            noise = jax.random.normal(key, (50,)) * jnp.exp(jax.random.normal(key))
            return tx.update({"w": noise}, state, params)[1], None

        keys = jax.random.split(jax.random.key(0), 40)
        return jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(tx.init(params)).signals

    raw, clipped = run(None), run(1e-2)
    assert np.isfinite(raw["intrinsic_dimension"][0])
    jax.tree.map(np.testing.assert_array_equal, raw, clipped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(every=0), "every must be an integer >= 1"),
        (dict(examples=4), "examples must be an integer >= 5"),
        (dict(examples=16, batch_size=8), "pass at most 8"),
        (dict(energy=0.0), r"energy must lie in \(0, 1\]"),
        (dict(smoothing=1.0), r"smoothing must lie in \[0, 1\)"),
        (dict(row_size=0), "row_size must be an integer >= 1"),
        (dict(row_size=2, centred=False), "row_size=1 or centred=True"),
        (dict(groups={}), "layer_groups"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fgo.probes.gram(ROWS, **arguments)


@pytest.mark.parametrize(
    ("rows_fn", "message"),
    [
        (fgo.probes.example_gradients(inner, 3), "chunk_size=3 does not divide the 8.*=2"),
        (micro_batches(4), "at least 5 rows but rows_fn made 2"),
        (lambda params, batch: jnp.sum(batch), "share a leading axis"),
        (lambda params, batch: {"a": batch, "b": batch[:2]}, "share a leading axis"),
    ],
)
def test_rows_that_do_not_fit(rows_fn, message):
    probe = fgo.probes.gram(rows_fn, examples=8)
    fresh = inputs(jnp.zeros(3), jnp.ones((8, 3)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(probe.measure, fresh, probe.init(None))


def test_a_chunk_size_that_is_none():
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1"):
        fgo.probes.example_gradients(inner, 0)


def test_rows_are_neither_flattened_nor_gathered():
    params, batch = mlp_params(), mlp_batch(0, size=16)
    probe = fgo.probes.gram(lambda p, b: jax.tree.map(lambda x: jnp.stack([x] * 8), p), examples=8)
    jaxpr = str(jax.make_jaxpr(probe.measure)(inputs(params, batch), probe.init(params)))
    assert "f32[8,8,16]" in jaxpr  # the rows of the kernel
    assert "f32[8,128]" not in jaxpr  # nor this, its rows in one axis
    assert "callback" not in jaxpr


def test_strict_promotion_and_a_state_that_keeps_its_types():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), mlp_params())
    rows = jax.tree.map(lambda p: jnp.ones((8, *p.shape), p.dtype), params)
    groups = fgo.probes.layer_groups(params)
    probe = fgo.probes.gram(lambda p, b: rows, examples=8, groups=groups)
    start = probe.init(params)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        end = jax.eval_shape(probe.measure, inputs(params, mlp_batch(0)), start)
        read = probe.read(start)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), start, end)
    assert all(jax.tree.leaves(same))
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype(jnp.float32)}
