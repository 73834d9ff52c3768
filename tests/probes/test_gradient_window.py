"""Windows of the default probe: their estimates by definition, their cadence, their signs.

One compiled scan over many streams of gradients. Its sketches are narrower than the tree, so
that the two of them differ; the smaller group fits into a sketch and is kept exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.linalg.rows import white_noise_rank
from fgo_jax.probes.probe import ProbeInputs

PAIRS, WIDTH, EVERY, ENERGY = 5, 16, 4, 0.9
LARGE, SMALL = 40, 12
STREAMS, STEPS = 48, 38
CLOSES = (17, 37)  # the steps that bring the second gradient of a fifth pair
QUIET, SMALL_ONLY, ANEW, PLAIN = range(4)
PROBE = fgo.probes.gradient_stream(
    pairs=PAIRS, width=WIDTH, every=EVERY, energy=ENERGY, groups={"large": "L", "small": "S"}
)
NAMES = PROBE.signals


def measured(inputs, state):
    return jax.lax.cond(
        PROBE.due(state, inputs.step), PROBE.measure, lambda _, old: old, inputs, state
    )


@pytest.fixture(scope="module")
def run():
    """The gradients [stream, step, entry] and the probe's state after each step."""
    rng = np.random.default_rng(0)
    # White noise and a falling spectrum, in turn: the sketch tells little of white noise.
    scale = np.array([1.0, 0.8])[np.arange(STREAMS) % 2, None] ** np.arange(LARGE + SMALL)
    grads = rng.standard_normal((STREAMS, STEPS, LARGE + SMALL)) * scale[:, None] + 0.3
    grads[QUIET, CLOSES[0] + 1 :] = 1.0
    grads[SMALL_ONLY, :, :LARGE] = 0.0
    grads[ANEW] = grads[PLAIN]
    grads = np.float32(grads)
    start = PROBE.init({"large": jnp.zeros(LARGE), "small": jnp.zeros(SMALL)})
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * STREAMS), start)
    # As after a restart: the clock is at zero, and the window half full.
    starts = starts._replace(
        half=starts.half.at[ANEW].set(1),
        filled=starts.filled.at[ANEW].set(3),
        next_row=starts.next_row.at[ANEW].set(1000),
    )

    def step(state, item):
        number, gradient = item
        rows = {"large": gradient[:LARGE], "small": gradient[LARGE:]}
        key = jax.random.fold_in(jax.random.key(0), number)
        state = measured(ProbeInputs(rows, rows, None, None, key, number), state)
        return state, state

    scan = jax.jit(jax.vmap(lambda s, g: jax.lax.scan(step, s, (jnp.arange(STEPS), g))[1]))
    return np.float64(grads), jax.device_get(scan(starts, grads))


def jackknife(ratio, rows):
    """Standard error of a function of a set of rows, from its values without each of them."""
    left_out = [ratio([row for row in rows if row != out]) for out in rows]
    return np.sqrt((len(rows) - 1) * np.var(left_out))


def estimates_of(differences, products, norms, slot):
    """Trace and log dimension of a slot, each with its error, from float64 sums over pairs."""
    grams = np.einsum("isk,jsk->sij", differences[:, slot], differences[:, slot])
    rows = list(range(PAIRS))

    def log_dimension(rows):
        pairs = [(i, j) for i in rows for j in rows if i != j]
        square = sum(grams[0, i, i] * grams[1, j, j] for i, j in pairs)
        crossed = sum(grams[0, i, j] * grams[1, i, j] for i, j in pairs)
        return np.log(square / crossed) if square > 0 and crossed > 0 else np.nan

    traces = np.einsum("sii->i", grams) / 2
    log = log_dimension(rows)
    return {
        "trace": (traces.mean(), traces.std(ddof=1) / PAIRS**0.5),
        "intrinsic_dimension": (np.exp(log), np.exp(log) * jackknife(log_dimension, rows)),
    }


def windows(state, streams=range(STREAMS)):
    """(stream, closing step, float64 differences, products, norms, estimates by name)."""
    for stream in streams:
        for at in CLOSES:
            sums = [
                np.float64(field[stream, at])
                for field in (state.differences, state.products, state.norms)
            ]
            yield stream, at, *sums, dict(zip(NAMES, state.estimates[stream, at], strict=True))


@pytest.mark.parametrize(("slot", "suffix"), [(0, ""), (1, "/L"), (2, "/S")])
def test_trace_and_dimension_are_cross_sums_with_jackknife_errors(run, slot, suffix):
    _, state = run
    good = bad = 0
    for stream, at, differences, products, norms, found in windows(state):
        if stream == QUIET and at == CLOSES[1]:
            continue
        for name, wanted in estimates_of(differences, products, norms, slot).items():
            if np.isnan(wanted[0]):
                bad += 1
                continue
            good += 1
            np.testing.assert_allclose(found[name + suffix], wanted, rtol=2e-3, err_msg=name)
    # The sketch makes some denominators negative: there is no dimension then.
    assert good > STREAMS
    assert bad or slot == 2


def test_a_window_without_a_dimension_keeps_the_last_and_is_counted(run):
    _, state = run
    kept = 0
    for stream, at, *sums, found in windows(state):
        dimension = estimates_of(*sums, 0)["intrinsic_dimension"][0]
        before = state.held[stream, at - 1]
        assert state.held[stream, at] == before + (not dimension > 0)
        if not dimension > 0:
            last = state.estimates[stream, at - 1][NAMES.index("intrinsic_dimension")]
            np.testing.assert_array_equal(found["intrinsic_dimension"], last)
            kept += np.isfinite(last[0])
        else:
            assert found["intrinsic_dimension"][0] > 0
    assert kept
    assert state.held[QUIET, CLOSES[1]] > state.held[QUIET, CLOSES[0]]
    np.testing.assert_array_equal(state.estimates[QUIET, -1, NAMES.index("trace")], 0.0)


def test_agreement_is_a_ratio_of_sums_with_a_jackknife_error(run):
    _, state = run
    for _, _, _, products, norms, found in windows(state, range(SMALL_ONLY, 8)):

        def ratio(rows, products=products, norms=norms):
            return products[rows].sum() / norms[rows].sum()

        rows = list(range(PAIRS))
        wanted = ratio(rows), jackknife(ratio, rows)
        np.testing.assert_allclose(found["agreement"], wanted, rtol=2e-3, atol=1e-6)


def test_the_top_eigenvalue_is_that_of_the_mean_gram_matrix_and_its_error_the_influences(run):
    _, state = run
    for _, _, differences, *_, found in windows(state, range(SMALL_ONLY, 8)):
        rows = differences[:, 0]
        gram = np.einsum("isk,jsk->ij", rows, rows) / 2
        values, vectors = np.linalg.eigh(gram)
        influence = values[-1] * vectors[:, -1] ** 2
        wanted = values[-1] / PAIRS, influence.std(ddof=1) / PAIRS**0.5
        np.testing.assert_allclose(found["top_eigenvalue"], wanted, rtol=2e-3)


def test_a_rank_near_the_ceiling_of_the_narrow_sketch_is_not_trusted(run):
    _, state = run
    # Squared inner products of white rows: 1/d of the tree, and half of 1/k for two sketches.
    ceiling = float(white_noise_rank(PAIRS, 1 / (1 / (LARGE + SMALL) + 0.5 / WIDTH), ENERGY))
    assert ceiling < float(white_noise_rank(PAIRS, LARGE + SMALL, ENERGY))
    for *_, found in windows(state, range(SMALL_ONLY, STREAMS)):
        rank, error = found["energy_rank"]
        assert np.isinf(error) == (rank > 0.85 * ceiling)


def test_rows_are_pairs_of_successive_gradients_over_root_two(run):
    grads, state = run
    firsts = np.arange(0, CLOSES[0], EVERY)
    first, second = grads[SMALL_ONLY, firsts], grads[SMALL_ONLY, firsts + 1]
    at = CLOSES[0]
    squares = np.square(state.differences[SMALL_ONLY, at]).sum(-1)  # [pair, slot, sketch]
    noise = np.square(second - first).sum(-1) / 2
    np.testing.assert_allclose(squares[:, 2], np.stack([noise, noise], 1), rtol=1e-4)
    np.testing.assert_allclose(
        state.products[SMALL_ONLY, at], (first * second).sum(-1), rtol=1e-4, atol=1e-5
    )
    power = (np.square(first) + np.square(second)).sum(-1) / 2
    np.testing.assert_allclose(state.norms[SMALL_ONLY, at], power, rtol=1e-4)


def test_pairs_begin_every_so_many_steps_and_windows_close_with_the_last(run):
    _, state = run
    for number, at in enumerate(CLOSES):
        assert state.evaluations[PLAIN, at - 1] == number
        assert state.evaluations[PLAIN, at] == number + 1
        assert state.filled[PLAIN, at] == state.half[PLAIN, at] == 0
    np.testing.assert_array_equal(state.half[PLAIN, :8], [1, 0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(state.filled[PLAIN, :8], [0, 1, 1, 1, 1, 2, 2, 2])


def test_a_window_has_one_seed_and_the_next_another(run):
    _, state = run
    seeds = state.window_seed[PLAIN]
    middle = CLOSES[0] + 3  # the second window begins here
    assert len(set(seeds[:middle])) == 1
    assert len(set(seeds[middle:])) == 1
    assert seeds[0] != seeds[-1]


def test_a_run_that_counts_from_zero_again_drops_what_it_had(run):
    _, state = run
    for field in (state.filled, state.evaluations, state.estimates):
        np.testing.assert_array_equal(field[ANEW], field[PLAIN])


def test_a_renewed_window_has_neither_pairs_nor_half_of_one(run):
    _, states = run
    state = jax.tree.map(lambda leaf: leaf[PLAIN, 4], states)
    assert int(state.half) == int(state.filled) == 1
    renewed = PROBE.renew(state)
    assert int(renewed.half) == int(renewed.filled) == 0
    assert int(renewed.evaluations) == int(state.evaluations)
