"""Ranks counted on few rows: their ceiling, their error, and that nothing fires on them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fgo_jax as fgo
from fgo_jax.linalg.rows import row_spectrum, trusted_error, unit_of, white_noise_rank
from fgo_jax.probes.groups import slots
from fgo_jax.triggers import Observation, Signal

t = fgo.triggers


@pytest.mark.parametrize(
    ("rows", "dimension"), [(8, 2048), (25, 2048), (25, 200), (25, 25), (64, 100), (100, 50)]
)
def test_the_ceiling_is_what_white_noise_reads(rows, dimension):
    noise = np.random.default_rng(0).standard_normal((100, rows, dimension))
    shares = np.linalg.svd(noise, compute_uv=False) ** 2
    held = np.cumsum(shares, axis=1) / shares.sum(1, keepdims=True)
    ranks = 1 + (held < 0.9).sum(1)
    ceiling = white_noise_rank(rows, dimension, 0.9)
    assert abs(ranks.mean() - float(ceiling)) < 1  # both are whole numbers
    # White noise itself is never trusted.
    assert np.isinf(trusted_error(ranks, jnp.ones(100), ceiling)).all()


def test_enough_rows_have_no_ceiling():
    assert np.isinf(white_noise_rank(200, 20, 0.9))
    assert float(trusted_error(jnp.float32(18.0), jnp.float32(0.5), jnp.inf)) == 0.5
    assert np.isinf(white_noise_rank(4, 0.5, 0.9))


def test_influences_are_the_spread_over_draws():
    scale = jnp.sqrt(jnp.append(9.0, 0.95 ** jnp.arange(60)))

    def draw(key):
        rows = jax.random.normal(key, (200, 61)) * scale
        return row_spectrum(rows @ rows.T, 200, 0.9)

    reads = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), 60))
    for value, influence in zip(reads[:2], reads[2:], strict=True):
        stated = jnp.mean(jnp.std(influence, axis=1)) / 200**0.5
        # 60 draws know a spread to 10 %, and a whole number adds a third to the rank's.
        spread = float(jnp.std(value))
        assert 0.7 * spread < float(stated) < 1.4 * spread


EVERY_KIND = {
    "above": lambda: t.above("x", 1.0, patience=1),
    "below": lambda: t.below("x", 1e6, patience=1),
    "stall": lambda: t.stall("x", patience=1),
    "stopped_falling": lambda: t.stopped_falling("x", patience=1),
    "decreasing": lambda: t.decreasing("x", patience=1),
    "increasing": lambda: t.increasing("x", patience=1),
    "plateau": lambda: t.plateau("x", patience=3),
    "if_given": lambda: t.if_given(t.above("x", 1.0, patience=1), "x", otherwise=1),
}


LOOKS = 40


@functools.cache
def looking(kind, negated):
    """A trigger's verdicts over a series: one program for all values and errors."""
    trigger = ~EVERY_KIND[kind]() if negated else EVERY_KIND[kind]()

    def look(state, item):
        value, error, step = item
        signal = Signal(value, error, jnp.asarray(True))
        verdict, state = trigger.update(Observation({"x": signal}, step, step), state)
        return state, verdict

    steps = 50 + np.arange(LOOKS)
    return jax.jit(
        lambda values, errors: jax.lax.scan(look, trigger.init(), (values, errors, steps))[1]
    )


def verdicts(kind, values, errors, negated=False):
    values, errors = np.asarray(values, np.float32), np.asarray(errors, np.float32)
    return np.asarray(looking(kind, negated)(values, errors))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_no_trigger_holds_or_fails_on_an_untrusted_signal(kind):
    noise = np.random.default_rng(0).standard_normal(LOOKS)
    for series in (7.0 + 0.01 * noise, 7.0 + np.arange(LOOKS), 70.0 - np.arange(LOOKS)):
        for negated in (False, True):
            assert (verdicts(kind, series, np.full(LOOKS, np.inf), negated) == 0).all()
        # The same series is decided where it is trusted: the silence is the error's doing.
        assert (verdicts(kind, series, np.zeros(LOOKS)) != 0).any()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_losing_trust_takes_a_verdict_back(kind):
    series = np.append(7.0 + 0.01 * np.random.default_rng(0).standard_normal(LOOKS - 1), 1e4)
    errors = np.append(np.zeros(LOOKS - 1), np.inf)
    out = verdicts(kind, series, errors)
    assert (out[:-1] != 0).any()
    assert out[-1] == 0


def test_a_rank_near_its_ceiling_ends_no_phase_and_telemetry_says_unknown():
    # White noise in 300 dimensions: 8 rows cannot tell how many there are.
    adam = fgo.acquisition(1e-3)
    tx = fgo.phased(
        [adam, fgo.execution(1e-3, decay=fgo.decays.hyperbolic(10))],
        [t.below("energy_rank", 100.0, patience=1) | ~t.above("energy_fraction", 2.0, patience=1)],
        fgo.probes.gradient_stream(every=2),
    )
    params = {"w": jnp.zeros(300)}

    def step(state, key):
        return tx.update({"w": jax.random.normal(key, (300,))}, state, params)[1], None

    keys = jax.random.split(jax.random.key(0), 70)
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, keys))(tx.init(params))
    told = fgo.telemetry(state)
    assert float(told["energy_rank"]) >= 7
    assert int(told["phase"]) == 0
    assert int(told["condition/acquisition/energy_rank_below"]) == 0
    assert int(told["condition/acquisition/not_energy_fraction_above"]) == 0


PARAMS = {"hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "out": jnp.ones(3)}


def test_groups_by_depth_and_by_function():
    by_depth = fgo.probes.layer_groups(PARAMS)
    assert by_depth == {"hidden/bias": "hidden", "hidden/kernel": "hidden", "out": "out"}
    assert slots(by_depth, PARAMS) == [(0, 1, 2), (0, 1), (2,)]
    abstract = jax.eval_shape(lambda: PARAMS)
    picked = fgo.probes.layer_groups(abstract, lambda p: "bias" if p.endswith("bias") else None)
    assert slots(picked, PARAMS) == [(0, 1, 2), (0,)]


def test_a_key_may_hold_a_slash():
    haiku = {"mlp/~/linear_0": {"w": 0.0, "b": 0.0}, "mlp/~/linear_1": {"w": 0.0}}
    groups = fgo.probes.layer_groups(haiku)
    assert set(groups.values()) == set(haiku)
    assert slots(groups, haiku) == [(0, 1, 2), (0, 1), (2,)]
    assert list(groups) == ["mlp/~/linear_0/b", "mlp/~/linear_0/w", "mlp/~/linear_1/w"]
    alike = {"a": {"b": 0.0}, "a/b": 0.0}  # two paths that would be one name
    assert slots(fgo.probes.layer_groups(alike), alike) == [(0, 1), (0,), (1,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fgo.probes.layer_groups(PARAMS, 0), "by must be an integer >= 1"),
        (lambda: fgo.probes.layer_groups(PARAMS, lambda path: None), "no parameter is in a group"),
        (lambda: fgo.probes.gradient_stream(groups=1), "layer_groups"),
        (lambda: slots({"stranger": "a"}, PARAMS), "stranger.*very parameters"),
    ],
)
def test_wrong_groups(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_gradient_stream_of_a_group_is_that_of_its_gradients_alone():
    pairs, scale = 8, jnp.sqrt(0.8 ** jnp.arange(40))

    def grads(number):
        keys = jax.random.split(jax.random.key(int(number)), 2)
        return {
            "hidden": {"w": 1.0 + jax.random.normal(keys[0], (40,)) * scale},
            "out": jax.random.normal(keys[1], (60,)),
        }

    def run(probe, pick):
        state = probe.init(pick(grads(0)))
        measure = jax.jit(probe.measure)
        for step in range(2 * pairs):
            rows = pick(grads(step))
            inputs = fgo.probes.ProbeInputs(
                rows, rows, None, None, jax.random.key(step), jnp.int32(step)
            )
            state = measure(inputs, state)
        return probe.read(state)

    groups = fgo.probes.layer_groups(grads(0))
    grouped = fgo.probes.gradient_stream(pairs=pairs, width=2048, every=2, groups=groups)
    read = run(grouped, lambda tree: tree)
    assert set(read) == set(grouped.signals)
    alone = run(
        fgo.probes.gradient_stream(pairs=pairs, width=2048, every=2), lambda tree: tree["hidden"]
    )
    # Sketches of a vector shorter than they are exact, whatever its signs.
    for name in ("trace", "intrinsic_dimension"):
        np.testing.assert_allclose(read[f"{name}/hidden"], alone[name], rtol=1e-4)
    parts = float(read["trace/hidden"].value + read["trace/out"].value)
    assert parts == pytest.approx(float(read["trace"].value), rel=1e-4)


@pytest.mark.parametrize("largest", [0.0, 1e-37, 0.3, 1.0, 1.9, 7e20, 3e38])
def test_a_unit_is_a_power_of_two_that_changes_no_digit(largest):
    rows = np.float32(largest) * np.linspace(-1, 0.5, 7, dtype=np.float32)
    unit = float(unit_of(jnp.asarray(rows)))
    assert np.frexp(unit)[0] == 0.5
    assert np.abs(rows / np.float32(unit)).max() < 4
    np.testing.assert_array_equal(jnp.asarray(rows) / unit * unit, rows)
