"""Mutations of what is measured: probes, their arithmetic and curvature."""

from tests.mutations.mutation import mutations

PROBES = [
    *mutations(
        "probes/gradient_stream.py",
        "probes/test_gradient_window.py",
        (
            "jnp.asarray(every, jnp.int32) - 1",
            "jnp.asarray(every, jnp.int32)",
            "the gap between pairs is longer",
        ),
        ("half=jnp.zeros_like(state.half), filled", "filled", "a renewed window keeps half a pair"),
        (", filled=jnp.zeros_like(state.filled)\n", "\n", "a renewed window keeps its rows"),
        ("jnp.where(anew, 0, state.filled)", "state.filled", "a restarted run keeps old rows"),
        ("jax.random.bits(key, dtype=jnp.uint32)", "old", "all windows share their signs"),
        ("(slot == 0) & (half == 0)", "half == 0", "rows of a window have different signs"),
        (
            "jnp.where(old, last[name], estimates[name])",
            "estimates[name]",
            "a dimension is lost for a window",
        ),
        (
            "held, optax.safe_increment(state.held), state.held",
            "held, state.held, optax.safe_increment(state.held)",
            "good windows are counted as held",
        ),
        ("(row - first) * jnp.float32(0.5**0.5)", "(row - first)", "the noise is twice as large"),
        (
            "products[1, 1]) / 4",
            "products[1, 1]) / 2",
            "the agreement is halved",
        ),
    ),
    *mutations(
        "probes/gradient_window.py",
        "probes/test_gradient_window.py",
        ("grams[:, 0] * grams[:, 1]", "grams[:, 0] * grams[:, 0]", "one sketch is squared"),
        (" - jnp.sum(first * second, -1)", "", "a row is paired with itself"),
        (
            "(1.0 - jnp.eye(grams.shape[-1]))[None] * weights",
            "1.0 * weights",
            "the trace of the square holds the diagonal",
        ),
        (
            "jnp.sqrt((rows - 1) * jnp.var(logs, axis=1))",
            "jnp.sqrt(jnp.var(logs, axis=1))",
            "the dimension's error is no jackknife",
        ),
        (
            "error = dimension * _jackknife_log",
            "error = _jackknife_log",
            "the dimension's error is relative",
        ),
        (
            "jnp.std(by_row, axis=1, ddof=1) / pairs**0.5",
            "jnp.std(by_row, axis=1, ddof=1)",
            "errors are of one pair",
        ),
        (
            "jnp.sqrt((rows - 1) * jnp.var(ratios))",
            "jnp.sqrt(jnp.var(ratios))",
            "the agreement's error is no jackknife",
        ),
        ("0.5 / width", "0.0 / width", "a narrow sketch has no ceiling"),
        (
            "good = (denominator > 0) & (numerator > 0)",
            "good = numerator > 0",
            "a negative dimension is read",
        ),
    ),
    *mutations(
        "probes/gram.py",
        "probes/test_averages.py",
        ("(n - 1) / n * jnp.matmul(gaps.T", "1 / n * jnp.matmul(gaps.T", "errors are no jackknife"),
        ("jnp.mean(whole) - covariance / n", "jnp.mean(whole)", "the mean gradient holds noise"),
    ),
    *mutations(
        "probes/gram_averages.py",
        "probes/test_averages.py",
        (
            "jnp.square(keep) * state.covariance",
            "keep * state.covariance",
            "old errors are too large",
        ),
        ("- 2.0 * covariance[:, top, bottom] / (a * b)", "", "a ratio's parts are independent"),
    ),
    *mutations(
        "probes/hutchinson_averages.py",
        "probes/test_averages.py",
        (
            "jnp.square(keep) * state.covariance",
            "keep * state.covariance",
            "old errors are too large",
        ),
        (
            "jnp.where(known[:, None], dimension, state.dimension)",
            "dimension",
            "a bad draw loses the dimension",
        ),
    ),
    *mutations(
        "probes/hutchinson.py",
        "probes/test_hutchinson.py::test_moments_are_unbiased_over_vectors_and_examples",
        ("number * half", "0 * half", "both halves are the same examples"),
        (
            "jnp.sum(x) * jnp.sum(y) - jnp.sum(x * y)",
            "jnp.sum(x) * jnp.sum(y)",
            "a vector is paired with itself",
        ),
    ),
    *mutations(
        "probes/hutchinson.py",
        "probes/test_averages.py",
        ("student_width(m - 1) ** 2", "1.0", "few vectors have a normal error"),
    ),
    *mutations(
        "probes/lanczos.py",
        "probes/test_quadrature.py",
        (
            "counted.counts * jnp.square(counted.ritz)",
            "counted.counts * counted.ritz",
            "the trace of the square is the trace",
        ),
        (
            "jnp.square(jnp.sum(first)) - jnp.sum(jnp.square(first))",
            "jnp.square(jnp.sum(first))",
            "a start is paired with itself",
        ),
        ("influence = 2.0 * first", "influence = 1.0 * first", "the dimension's error is wrong"),
    ),
    *mutations(
        "probes/lanczos.py",
        "probes/test_lanczos.py::test_small_operators_are_solved_exactly_and_one_start_has_no_error",
        ("jnp.where(single, jnp.ceil(x), u)", "u", "the rank is a broken number"),
    ),
]

LINALG = [
    *mutations(
        "linalg/members.py",
        "linalg/test_members.py",
        ("counter < 0", "counter >= 0", "every member is the first"),
        ("cpu=in_one_kernel", "cpu=at_fixed_places", "every slice is a kernel of its own"),
    ),
    *mutations(
        "linalg/sums.py",
        "linalg/test_sums.py::test_energy_rank_at_an_exact_share_and_at_the_edges",
        (" * (1.0 - _ROUNDING)", "", "an exact share needs one more eigenvalue"),
        ("held < wanted", "held <= 0.5 * wanted", "the energy rank holds half of its share"),
    ),
    *mutations(
        "linalg/sums.py",
        "linalg/test_errors_of_ratios.py",
        ("jnp.sqrt((n - 1) * jnp.var", "jnp.sqrt(n * jnp.var", "the jackknife is too large"),
    ),
    *mutations(
        "linalg/sums.py",
        "linalg/test_sums.py::test_centred_sums_are_means_over_distinct_quadruples",
        ("own = n / (n - 2) * t2", "own = t2", "centred sums are biased"),
    ),
    *mutations(
        "linalg/sums.py",
        "linalg/test_sums.py::test_uncentred_sums_are_means_over_distinct_pairs",
        ("jnp.sum(diagonal) - diagonal)", "jnp.sum(diagonal))", "a row is paired with itself"),
    ),
    *mutations(
        "linalg/rows.py",
        "linalg/test_errors_of_ratios.py",
        ("rank > _NEAR * ceiling", "rank > ceiling", "a rank at its ceiling is trusted"),
    ),
    *mutations(
        "linalg/rows.py",
        "linalg/test_errors_of_ratios.py",
        ("np.sqrt(few - index[1:])", "np.sqrt(few - index[:-1])", "the ceiling is too high"),
    ),
    *mutations(
        "linalg/trees.py",
        "linalg/test_trees.py",
        (
            "same[start : start + _PARTS]",
            "same[start : start + 9]",
            "a row loses leaves",
        ),
    ),
    *mutations(
        "linalg/rows.py",
        "linalg/test_rows.py",
        ("jnp.clip(power, 2.0**-126, 2.0**126)", "power", "a unit of zero"),
    ),
    *mutations(
        "linalg/trees.py",
        "precondition/test_graft.py",
        ("return 0.5 * (above", "return (above", "a graft is of squared norms"),
    ),
    *mutations(
        "linalg/krylov.py",
        "probes/test_quadrature.py",
        (
            "second = coefficients(basis, rest, zeros)",
            "second = zeros",
            "a basis loses orthogonality",
        ),
        (
            "remaining * shares",
            "dimension * shares",
            "more eigenvalues than dimensions are counted",
        ),
    ),
    *mutations(
        "linalg/operator.py",
        "probes/test_hutchinson.py::test_cadence",
        ("(step > 0) & (step %", "(step %", "a probe measures before training"),
    ),
]

CURVATURE = [
    *mutations(
        "curvature/losses.py",
        "curvature/test_ggn.py::test_softmax_is_the_fisher_over_the_models_own_labels",
        (
            "p * (tangent - jnp.sum(p * tangent, axis=-1, keepdims=True))",
            "p * tangent",
            "the softmax has independent classes",
        ),
    ),
    *mutations(
        "curvature/losses.py",
        "curvature/test_ggn.py::test_saturated_sigmoids_keep_their_variance",
        (
            "* jax.nn.sigmoid(-outputs)",
            "* (1 - jax.nn.sigmoid(outputs))",
            "a saturated sigmoid has no variance",
        ),
    ),
    *mutations(
        "curvature/chunks.py",
        "curvature/test_against_dense.py::test_weighted_and_chunked_is_the_dense_weighted_mean",
        (
            "shares = totals / weighting.safe_total(jnp.sum(totals))",
            "pass",
            "weighted chunks count alike",
        ),
    ),
    *mutations(
        "curvature/chunks.py",
        "curvature/test_sampled_fisher.py::test_rows_are_numbered_in_the_batch_and_not_in_the_chunk",
        (
            "(example * self.of + self.index) * per_example + row",
            "local",
            "every chunk draws the same labels",
        ),
    ),
    *mutations(
        "curvature/empirical_fisher.py",
        "curvature/test_against_dense.py::test_is_its_dense_definition",
        (
            "model.pull(shares * model.push(vector))",
            "model.pull(model.push(vector))",
            "the empirical Fisher is a sum",
        ),
    ),
    *mutations(
        "curvature/selection.py",
        "curvature/test_against_dense.py::test_masked_is_the_dense_sub_block",
        (
            "if c else jnp.zeros(jnp.shape(leaf), jnp.float32)",
            "if c else jnp.ones(jnp.shape(leaf), jnp.float32)",
            "what a mask leaves out is curved",
        ),
    ),
    *mutations(
        "curvature/weights.py",
        "curvature/test_options.py::test_weights_that_are_all_zero_give_zero",
        ("jnp.where(total > 0.0, total, 1.0)", "total", "weights of zero give NaN"),
    ),
    *mutations(
        "curvature/friction.py",
        "curvature/test_friction.py",
        ("vdot(direction, optax", "0.5 * vdot(direction, optax", "friction is halved"),
    ),
]

MEASURING = [*PROBES, *LINALG, *CURVATURE]
