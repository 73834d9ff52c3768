"""The offline spectrum against dense float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.analysis import quadrature
from tests.problems import mlp, mlp_batch, mlp_params

PARAMS, BATCH = mlp_params(width=6), mlp_batch(0, 24)


def losses(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(mlp(params, batch["x"]), batch["y"])


GGN = fgo.curvature.ggn(lambda params, batch: mlp(params, batch["x"]))
HESSIAN = fgo.curvature.hessian(losses)


def dense(operator, params=PARAMS, batch=BATCH):
    """The matrix, product by product, in float64."""
    with jax.enable_x64(True):
        params = optax.tree.cast(jax.tree.map(np.asarray, params), jnp.float64)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        matvec = operator(params, batch)
        columns = jax.lax.map(
            lambda v: jax.flatten_util.ravel_pytree(matvec(unravel(v)))[0], jnp.eye(flat.size)
        )
        return np.asarray(columns, np.float64)


def diagonal(eigenvalues):
    values = jnp.asarray(eigenvalues, jnp.float32)
    return (lambda params, batch: lambda v: values * v), jnp.zeros(len(eigenvalues))


def truths(eigenvalues, energy=0.9):
    eigenvalues = np.asarray(eigenvalues, np.float64)
    sizes = np.sort(np.abs(eigenvalues))[::-1]
    held = np.cumsum(sizes)
    return {
        "trace": np.sum(eigenvalues),
        "trace_square": np.sum(sizes**2),
        "participation_ratio": held[-1] ** 2 / np.sum(sizes**2),
        "energy_rank": 1 + np.sum(held < energy * held[-1] * (1 - 1e-6)),
        "negative_share": np.sum(np.maximum(-eigenvalues, 0)) / held[-1],
    }


def covers(estimate, truth, relative=2e-4):
    """Within two standard errors, widened by what float32 products lose, and by its rounding."""
    lost = relative * abs(truth) + float(jnp.finfo(jnp.float32).eps)
    return abs(float(estimate.value) - truth) <= 2 * float(estimate.error) + lost


@pytest.fixture(scope="module")
def reports():
    groups = fgo.probes.layer_groups(PARAMS)
    rows_fn = fgo.probes.example_gradients(
        lambda p, e: losses(p, jax.tree.map(lambda leaf: leaf[None], e))[0]
    )
    return {
        "ggn": fgo.spectrum(
            GGN, PARAMS, BATCH, num_steps=40, num_starts=3, groups=groups, rows_fn=rows_fn
        ),
        "hessian": fgo.spectrum(HESSIAN, PARAMS, BATCH, num_steps=40, num_starts=3, top=12),
    }


@pytest.mark.parametrize(("name", "operator"), [("ggn", GGN), ("hessian", HESSIAN)])
def test_a_network_against_its_dense_matrix(reports, name, operator):
    report = reports[name]
    truth = np.linalg.eigvalsh(dense(operator))
    listed = truth[np.argsort(-np.abs(truth))][: len(report.eigenvalues)]
    largest = np.max(np.abs(truth))
    np.testing.assert_allclose(report.eigenvalues, listed, atol=1e-4 * largest)
    assert np.all(report.residuals <= 1e-3 * largest)
    assert report.complete
    assert report.dimension == 72
    for signal, value in truths(truth).items():
        assert covers(getattr(report, signal), value), signal
    assert abs(report.top_eigenvalue.value - truth[-1]) <= 1e-4 * largest
    if name == "hessian":
        assert np.any(report.eigenvalues < 0)
        assert abs(report.lowest_eigenvalue.value - truth[0]) <= 1e-4 * largest


def test_eigenvectors_are_orthonormal_pytrees(reports):
    report = reports["ggn"]
    assert jax.tree.structure(report.eigenvectors) == jax.tree.structure(PARAMS)
    rows = np.concatenate(
        [np.asarray(leaf).reshape(10, -1) for leaf in jax.tree.leaves(report.eigenvectors)], 1
    )
    np.testing.assert_allclose(rows @ rows.T, np.eye(10), atol=2e-5)
    rest = rows @ dense(GGN) - report.eigenvalues[:, None] * rows
    largest = report.eigenvalues[0]
    np.testing.assert_allclose(np.linalg.norm(rest, axis=1), report.residuals, atol=1e-5 * largest)
    friction = fgo.curvature.friction(GGN(PARAMS, BATCH), report.eigenvector(0))
    np.testing.assert_allclose(friction, largest, rtol=1e-4)


def test_layers_are_the_diagonal_blocks(reports):
    matrix = dense(GGN)
    paths = fgo.probes.layer_groups(PARAMS)  # in the order of the leaves
    sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
    owner = np.repeat(list(paths.values()), sizes)
    for name, part in reports["ggn"].layers.items():
        truth = np.linalg.eigvalsh(matrix[np.ix_(owner == name, owner == name)])
        assert part.dimension == len(truth)
        np.testing.assert_allclose(part.top_eigenvalue.value, truth[-1], rtol=1e-4)
        for signal in ("trace", "participation_ratio"):
            assert covers(getattr(part, signal), truths(truth)[signal]), (name, signal)
        assert part.noise_scale is not None


def test_noise_scale_of_the_rows(reports):
    """McCandlish's simple noise scale, both terms without bias, from all 24 gradients."""
    rows = jax.jacrev(losses)(PARAMS, BATCH)
    rows = np.concatenate([np.asarray(r).reshape(24, -1) for r in jax.tree.leaves(rows)], 1)
    noise = np.trace(np.cov(rows.T))
    signal = np.sum(np.mean(rows, 0) ** 2) - noise / 24
    np.testing.assert_allclose(reports["ggn"].noise_scale.value, noise / signal, rtol=1e-3)


def test_density_integrates_to_the_dimension(reports):
    for report in reports.values():
        density = report.density()
        total = np.trapezoid(density.values, density.eigenvalues)
        np.testing.assert_allclose(total, report.dimension, rtol=1e-3)


def test_a_kernel_between_the_points_of_the_grid_is_refused(reports):
    with pytest.raises(ValueError, match="pass points= of at least"):
        reports["ggn"].density(width=0.001)
    fine = reports["ggn"].density(20_000, width=0.001)
    whole = np.trapezoid(fine.values, fine.eigenvalues)
    np.testing.assert_allclose(whole, reports["ggn"].dimension, rtol=1e-3)


def test_a_mask_leaves_only_its_dimensions():
    mask = {"hidden": False, "out": True}
    masked = fgo.curvature.ggn(lambda params, batch: mlp(params, batch["x"]), mask=mask)
    report = fgo.spectrum(masked, PARAMS, BATCH, num_steps=18, num_starts=2, top=3)
    block = dense(GGN)[-18:, -18:]
    assert report.dimension == 18
    np.testing.assert_allclose(report.eigenvalues, np.linalg.eigvalsh(block)[:-4:-1], rtol=1e-4)
    assert not np.any(report.eigenvectors["hidden"]["kernel"])


def test_several_batches_are_one_large_one(reports):
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 8], BATCH) for i in (0, 8, 16)]
    report = fgo.spectrum(GGN, PARAMS, batches=parts, num_steps=20, num_starts=2, top=3)
    np.testing.assert_allclose(report.eigenvalues, reports["ggn"].eigenvalues[:3], rtol=1e-4)


def test_errors_cover_the_truth():
    """40 keys: at a coverage of 95 % fewer than 36 hits have a probability of 5 %."""
    eigenvalues = np.r_[[50.0, 20.0, -10.0], np.random.default_rng(0).gamma(1.0, 1.0, 117)]
    operator, params = diagonal(eigenvalues)
    hits = dict.fromkeys(truths(eigenvalues), 0)
    for seed in range(40):
        report = fgo.spectrum(
            operator, params, 0, key=jax.random.key(seed), num_steps=16, num_starts=4, top=3
        )
        for signal, truth in truths(eigenvalues).items():
            hits[signal] += covers(getattr(report, signal), truth)
    assert min(hits.values()) >= 36, hits


def test_a_block_lists_the_copies_of_a_multiple_eigenvalue():
    eigenvalues = np.r_[np.full(4, 7.0), [3.0, 2.0, 1.0], np.zeros(53)]
    operator, params = diagonal(eigenvalues)
    single = fgo.spectrum(operator, params, 0, num_steps=16, num_starts=4, top=4)
    assert not single.complete
    assert covers(single.trace, 34.0)
    block = fgo.spectrum(operator, params, 0, num_steps=24, num_starts=4, top=4, block_size=5)
    np.testing.assert_allclose(block.eigenvalues, np.full(4, 7.0), rtol=1e-5)
    assert block.complete
    assert block.energy_rank.value == 5.0  # 28 + 3 of 34
    np.testing.assert_allclose(block.trace.value, 34.0, rtol=1e-5)


def test_rank_three_is_counted_exactly():
    factor = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 3)))[0]
    matrix = jnp.asarray(factor * [4.0, 2.0, 1.0] @ factor.T, jnp.float32)
    report = fgo.spectrum(
        lambda params, batch: lambda v: matrix @ v, jnp.zeros(40), 0, num_steps=12, num_starts=2
    )
    np.testing.assert_allclose(report.eigenvalues[:3], [4.0, 2.0, 1.0], rtol=1e-5)
    assert np.all(np.abs(report.eigenvalues[3:]) < 1e-5)
    assert report.complete
    np.testing.assert_allclose(report.participation_ratio.value, 49 / 21, rtol=1e-4)
    assert report.energy_rank.value == 3.0


@pytest.mark.parametrize(("energy", "rank"), [(0.9, 5), (0.8, 4), (1.0, 5)])
def test_the_energy_rank_of_a_multiple_eigenvalue_is_a_whole_number(energy, rank):
    operator, params = diagonal(np.ones(5))
    found = fgo.spectrum(operator, params, 0, num_steps=8, top=1, energy=energy).energy_rank
    assert found.value == rank == fgo.linalg.energy_rank(jnp.ones(5), energy)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_as_many_steps_as_dimensions_are_exact(size):
    values = jnp.array([3.0, -1.0, 0.5])[:size]

    def operator(params, batch):
        return lambda v: values * v

    for seed in range(6):
        report = fgo.spectrum(
            operator, jnp.zeros(size), 0, key=jax.random.key(seed), num_steps=size, top=size
        )
        ratio = report.participation_ratio
        np.testing.assert_allclose(
            ratio.value, np.sum(np.abs(values)) ** 2 / np.sum(values**2), rtol=1e-4
        )
        assert ratio.error < 1e-4


def test_the_starts_average_to_the_rule():
    ritz = quadrature.Ritz(np.array([2.0, 1.0]), np.array([0.25, 0.75]), np.zeros(2), np.eye(2))
    rule = quadrature.combine(np.array([9.0]), [ritz, ritz], 5)
    assert np.sum(rule.weights) == 5.0
    for part in (rule.of_start(0)[1], rule.without(1).weights):
        np.testing.assert_allclose(part, [1.0, 1.0, 3.0])


def test_a_rule_of_all_eigenvalues_has_no_other_nodes():
    rounding = quadrature.Ritz(np.array([1e-14, -1e-16]), np.ones(2) / 2, np.zeros(2), np.eye(2))
    rule = quadrature.combine(np.array([4.0, 1.0]), [rounding, rounding], 2)
    np.testing.assert_array_equal(rule.nodes, [4.0, 1.0])
    np.testing.assert_array_equal(rule.of_start(1)[1], [1.0, 1.0])


def test_printed_it_is_a_table(reports):
    text = str(reports["ggn"])
    assert "operator              ggn of softmax_cross_entropy" in text
    assert "data                  24 examples" in text
    assert "Lanczos               40 steps, 3 random starts" in text
    assert "hessian of losses" in str(reports["hessian"])
    assert "participation_ratio" in text
    assert "hidden" in text
    assert "resolved" not in text
    assert len(text.splitlines()) < 20


def test_a_positive_operator_has_no_density_below_zero(reports):
    """The mass that the kernel would put there is folded back; an indefinite one keeps it."""
    density = reports["ggn"].density()
    assert density.eigenvalues[0] == 0.0
    assert np.all(np.diff(density.eigenvalues) > 0)
    below = reports["hessian"].density()
    assert below.eigenvalues[0] < reports["hessian"].lowest_eigenvalue.value < 0
    operator, params = diagonal(-np.linspace(0.1, 1.0, 20))
    mirrored = fgo.spectrum(operator, params, 0, num_steps=20, num_starts=2).density()
    assert mirrored.eigenvalues[-1] == 0.0
    np.testing.assert_allclose(np.trapezoid(mirrored.values, mirrored.eigenvalues), 20, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pass one batch as batch="),
        ({"batch": 0, "batches": [0]}, "pass one batch as batch="),
        ({"batches": [jnp.zeros(2), jnp.zeros(3)]}, "leave out a smaller last batch"),
        ({"batches": []}, "holds no arrays"),
        ({"batch": 0, "num_starts": 1}, "num_starts must be an integer >= 2"),
        ({"batch": 0, "num_steps": 4, "top": 5}, "pass num_steps= of at least 5 "),
        ({"batch": 0, "num_steps": 12, "block_size": 13}, "pass num_steps= of at least 13 "),
        ({"batch": 0, "energy": 0.0}, r"energy must lie in \(0, 1\]"),
        ({"batch": 0, "energy": 1.5}, r"energy must lie in \(0, 1\]"),
        ({"batch": jnp.zeros((4, 2)), "rows_fn": lambda p, b: b}, "at least 5 examples, got 4"),
        ({"batch": 0, "groups": {"elsewhere": "a"}}, "groups names"),
    ],
)
def test_wrong_arguments_say_what_to_pass(arguments, message):
    operator, params = diagonal([2.0, 1.0])
    with pytest.raises(ValueError, match=message):
        fgo.spectrum(operator, params, **arguments)


@pytest.mark.parametrize(
    ("eigenvalues", "message"), [([0.0, 0.0], "no spectrum"), ([np.nan, 1.0], "not finite")]
)
def test_an_operator_without_spectrum_is_refused(eigenvalues, message):
    operator, params = diagonal(eigenvalues)
    with pytest.raises(ValueError, match=message):
        fgo.spectrum(operator, params, 0)


def test_a_group_that_the_operator_leaves_out_is_refused():
    def operator(params, batch):
        return lambda v: {"a": v["a"], "b": 0.0 * v["b"]}

    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match="zeros on all of group 'b'"):
        fgo.spectrum(operator, params, 0, groups=fgo.probes.layer_groups(params), num_steps=10)


def test_bfloat16_parameters_give_float32_statistics():
    # The same numbers in both runs: what differs is the arithmetic.
    low = optax.tree.cast((PARAMS, {"x": BATCH["x"]}), jnp.bfloat16)
    wide = optax.tree.cast(low, jnp.float32)
    reports = [
        fgo.spectrum(GGN, params, {**batch, "y": BATCH["y"]}, num_steps=12)
        for params, batch in (low, wide)
    ]
    for name in ("trace", "participation_ratio"):
        rounded, exact = (getattr(report, name).value for report in reports)
        assert jnp.asarray(rounded).dtype == jnp.float32
        np.testing.assert_allclose(rounded, exact, rtol=0.02)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_eigenvalues_whose_squares_leave_float32_are_those_of_any_unit(scale):
    values = jnp.concatenate([jnp.array([9.0, 5.0, 2.0]), jnp.linspace(0.1, 1.0, 27)])
    plain, scaled = (
        fgo.spectrum(lambda p, b: lambda v: (b * values) * v, jnp.zeros(30), unit, num_steps=12)
        for unit in (jnp.float32(1.0), jnp.float32(scale))
    )
    np.testing.assert_allclose(scaled.eigenvalues / scale, plain.eigenvalues, rtol=1e-5)
    for name in ("trace", "lowest_eigenvalue", "participation_ratio", "energy_rank"):
        unit = scale if name in ("trace", "lowest_eigenvalue") else 1.0
        for a, b in zip(getattr(scaled, name), getattr(plain, name), strict=True):
            np.testing.assert_allclose(a / unit, b, rtol=1e-3, err_msg=name)
    assert np.all(scaled.residuals > 0)


def test_errors_in_half_precision_hold_its_rounding():
    x = jax.random.normal(jax.random.key(0), (64, 12))
    operator = fgo.curvature.ggn(lambda p, b: b.astype(p.dtype) @ p, "softmax_cross_entropy")
    params = 0.1 * jax.random.normal(jax.random.key(1), (12, 5))
    exact, rounded = (
        fgo.spectrum(operator, params.astype(dtype), batch=x, num_steps=24)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    same = params.astype(jnp.bfloat16).astype(jnp.float32)  # the same model, in float32
    truth = fgo.spectrum(operator, same, batch=x, num_steps=24)
    off = abs(float(rounded.top_eigenvalue.value) - float(truth.top_eigenvalue.value))
    assert off > 10 * float(exact.top_eigenvalue.error)
    assert off <= float(rounded.top_eigenvalue.error)
    assert float(rounded.top_eigenvalue.error) < 0.02 * float(truth.top_eigenvalue.value)
