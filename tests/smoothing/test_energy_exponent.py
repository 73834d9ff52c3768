"""The energy of the slow mean: what its exponent says, and how an adaptive decay follows it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.linalg import sum_squares
from fgo_jax.smoothing import energy_exponent
from tests.problems import trees_equal

COUNT, SIZE = 2000, 300
NOISE = np.random.default_rng(0).standard_normal((COUNT + 1, SIZE)).astype(np.float32)
# Directions that agree, that are noise, and those of a parameter that stays where it is: it
# moves to and fro, and their sum is bounded.
KINDS = {
    0.0: np.ones((COUNT, SIZE), np.float32) + 0.1 * NOISE[1:],
    1.0: NOISE[1:],
    2.0: np.diff(NOISE, axis=0),
}
ALWAYS = fgo.triggers.after(0)
RAMP = 10


def three(decay=None, **arguments):
    sgd, decay = optax.identity(), decay or fgo.decays.adaptive(onset=0.0)
    return fgo.phased(
        [
            fgo.acquisition(1.0, transform=sgd),
            fgo.reask(1.0, cut=0.0, transform=sgd, slow_share=0.5),
            fgo.execution(1.0, cut=0.0, decay=decay, slow_share=0.5, transform=sgd),
        ],
        [fgo.triggers.after(19), fgo.triggers.after(99)],
        handover_steps=RAMP,
        **arguments,
    )


def scanned(tx, rows):
    """Telemetry after every step of a sequence of gradients, and the last state."""
    params = {"w": jnp.zeros(rows.shape[1])}

    def step(state, row):
        state = tx.update({"w": row}, state, params)[1]
        return state, fgo.telemetry(state)

    state, record = jax.lax.scan(step, tx.init(params), rows)
    return record, state


def told(tx, rows):
    return jax.device_get(jax.jit(functools.partial(scanned, tx))(rows))


# One program for all onsets and gradients, and one for a step.
adaptive_run = jax.jit(lambda onset, rows: scanned(three(fgo.decays.adaptive(onset=onset)), rows))
one_step = jax.jit(three().update)


@functools.cache
def adaptive(exponent, onset=0.0, steps=COUNT):
    return jax.device_get(adaptive_run(onset, KINDS[exponent][:steps]))


@pytest.mark.parametrize("exponent", KINDS)
def test_the_exponent_tells_agreement_from_noise_and_noise_from_rest(exponent):
    record, _ = adaptive(exponent)
    measured = record["energy_exponent"][COUNT // 2 :]
    assert np.median(measured) == pytest.approx(exponent, abs=0.1)


@pytest.mark.parametrize("exponent", KINDS)
def test_it_is_the_slope_of_the_energy_over_log_time(exponent):
    tx, rows = fgo.slow_momentum(0.5), KINDS[exponent]
    params = {"w": jnp.zeros(SIZE)}

    def step(carry, row):
        slow, state = carry
        state = energy_exponent.energy_fall_update(state, slow)
        energy = jnp.sum(slow.mean["w"].astype(jnp.float32) ** 2)
        return (tx.update({"w": row}, slow, params)[1], state), energy

    start = (tx.init(params), energy_exponent.energy_fall_init())
    (_, state), energies = jax.lax.scan(step, start, jnp.asarray(rows))
    # The same means in float64 from their weights, which are powers of the measurement.
    at = np.arange(energy_exponent.EVERY, COUNT, energy_exponent.EVERY)
    energy = np.asarray(energies, np.float64)[at]
    slope = np.diff(energy) / np.diff(np.log(0.25 * at + 1))
    middle = (energy[1:] + energy[:-1]) / 2
    kept = 1 / (energy_exponent.MEMORY * np.arange(len(slope)) + 1)
    weights = kept * np.append(np.cumprod((1 - kept)[::-1])[::-1][1:], 1.0)
    wanted = -(weights @ slope) / (weights @ middle)
    np.testing.assert_allclose(energy_exponent.energy_exponent(state), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("exponent", "onset", "power"),
    [(0, 0, 0), (1, 0, 1), (2, 0, 1), (0, 1, 0), (1, 1, 0), (2, 1, 1)],
)
def test_the_rate_falls_by_what_the_exponent_exceeds_the_onset(exponent, onset, power):
    record, _ = adaptive(exponent, float(onset))
    rate, total = record["learning_rate"], np.arange(COUNT) + 1
    late = slice(COUNT // 4, None)
    slope = np.polyfit(np.log(total[late]), np.log(rate[late]), 1)[0]
    assert slope == pytest.approx(-power, abs=0.12)


@functools.partial(jax.jit, static_argnums=1)
def rates_at_rest(onset, weight_decay, rows):
    """The rates of parameters that rest, noise and all."""
    last = fgo.execution(
        0.3, 0.0, decay=fgo.decays.adaptive(200, onset=onset), weight_decay=weight_decay,
        slow_share=0.5, transform=optax.identity(),
    )  # fmt: skip
    tx = fgo.phased([last], [])
    params = {"w": jnp.zeros(SIZE)}

    def step(carry, row):
        params, state = carry
        # A quadratic bowl around ones: where the weights decay, it pulls against that.
        grads = jax.tree.map(lambda p: p - 1.0 + row, params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), state.fgo_learning_rate

    return jax.lax.scan(step, (params, tx.init(params)), rows)[1]


def settled(onset, weight_decay, seed):
    """The power of t by which the rate falls."""
    rows = np.random.default_rng(seed).standard_normal((6000, SIZE), np.float32)
    rate = np.asarray(rates_at_rest(onset, weight_decay, rows))
    return -float(np.polyfit(np.log(np.arange(1000, 6000)), np.log(rate[1000:]), 1)[0])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("onset", "power"), [(0.0, 1.0), (1.0, 0.5)])
def test_a_rate_at_rest_falls_as_1_over_t_or_its_root(onset, power, weight_decay):
    # Resting under a rate of t^-p gives an exponent of 2 - p, so p = 2 - p - onset, at most 1.
    powers = [settled(onset, weight_decay, seed) for seed in range(3)]
    assert np.median(powers) == pytest.approx(power, abs=0.12)


def test_another_transform_is_measured_anew():
    small, large = optax.identity(), optax.scale(100.0)
    tx = fgo.phased(
        [
            fgo.reask(1.0, cut=0.0, transform=small, slow_share=0.5),
            fgo.execution(1.0, 0.0, decay=fgo.decays.adaptive(), transform=large, slow_share=0.5),
        ],
        [fgo.triggers.after(99)],
        handover_steps=RAMP,
    )
    state, params = tx.init({"w": jnp.zeros(SIZE)}), {"w": jnp.zeros(SIZE)}
    update = jax.jit(tx.update)
    for number, row in enumerate(NOISE[:120]):
        taken_over = int(state.clock.driver_since) == number
        _, state = update({"w": row}, state, params)
        if taken_over and number:
            assert int(state.energy_fall.counts[0]) <= 1
            return
    raise AssertionError("the second transform never took over")


def test_an_energy_too_large_for_a_float_is_no_measurement():
    rows = KINDS[1.0][:400].copy()
    rows[200] = 1e20
    _, state = adaptive_run(0.0, rows)
    assert np.isfinite(state.energy_fall.means).all()


def test_at_its_fastest_it_is_the_hyperbolic_law():
    fastest, _ = adaptive(2.0)
    hyperbolic, _ = told(three(fgo.decays.hyperbolic()), KINDS[2.0])
    assert np.all(fastest["energy_exponent"][130:] > 1)
    began = int(hyperbolic["started/execution"][-1])
    assert began == int(fastest["started/execution"][-1])
    behind = fastest["learning_rate"] / hyperbolic["learning_rate"]
    # The first two measurements come in re-ask, so there is nothing to catch up with.
    np.testing.assert_allclose(behind[began + RAMP :], 1.0, rtol=1e-4)


def test_a_horizon_bounds_it():
    record, _ = told(three(fgo.decays.adaptive(onset=1.0), total_steps=400), KINDS[0.0][:400])
    began = int(record["started/execution"][-1])
    left = 1 - (np.arange(400) - began) / (400 - began)
    np.testing.assert_allclose(record["learning_rate"][-50:], left[-50:], rtol=1e-4)


def test_it_begins_anew_with_the_momentum():
    params = {"w": jnp.zeros(SIZE)}
    record, fallen = adaptive(1.0, steps=400)
    assert record["learning_rate"][-1] < 0.5
    state = fgo.force_phase(fallen, "acquisition")
    for row in NOISE[:3]:  # the third is the first whose momentum is new
        _, state = one_step({"w": row}, state, params)
    assert int(state.energy_fall.counts[0]) == 0
    assert np.isnan(fgo.telemetry(state)["energy_exponent"])
    assert float(state.clock.decay_exponent) == 0.0
    assert float(fallen.clock.decay_exponent) > 0.5
    assert float(fgo.restart(fallen).clock.decay_exponent) == 0.0


def test_a_step_that_is_not_finite_leaves_it_as_it_was():
    params = {"w": jnp.zeros(SIZE)}
    _, state = adaptive(1.0, steps=400)
    assert int(state.slow.averaged_steps) % energy_exponent.EVERY == 0  # due at the next step
    bad = KINDS[1.0][0].copy()
    bad[0] = np.nan
    _, after = one_step({"w": bad}, state, params)
    assert trees_equal(after.energy_fall, state.energy_fall)
    assert float(after.clock.decay_exponent) == float(state.clock.decay_exponent)


def test_execution_alone_follows_it_too():
    decay = fgo.decays.adaptive(50)
    phase = fgo.execution(1.0, 0.0, decay=decay, slow_share=0.5, transform=optax.identity())
    tx = fgo.phased([phase], [])
    params = {"w": jnp.zeros(SIZE)}

    def step(state, row):
        state = tx.update({"w": row}, state, params)[1]
        return state, state.fgo_learning_rate

    for exponent in KINDS:
        _, rate = jax.lax.scan(step, tx.init(params), jnp.asarray(KINDS[exponent]))
        slope = np.log(rate[-1] / rate[500]) / np.log((COUNT + 50) / 550)
        assert slope == pytest.approx(-min(exponent, 1.0), abs=0.12)


@pytest.mark.parametrize("share", [None, 0.0, np.float32(0)])
def test_without_a_slow_momentum_there_is_nothing_to_follow(share):
    with pytest.raises(ValueError, match="slow_share"):
        fgo.target_acquisition(1e-3, slow_share=share)
    assert fgo.target_acquisition(1e-3, slow_share=share, decay=fgo.decays.cosine()) is not None


@pytest.mark.parametrize("injected", [False, True])
@pytest.mark.parametrize(
    ("arguments", "power"),
    [
        ({}, 1.0),
        ({"average_weights": 0.1}, 0.0),
        ({"average_weights": 0.0}, 1.0),
        ({"decay": fgo.decays.adaptive(onset=1.0)}, 0.0),
    ],
)
def test_noise_is_a_reason_to_fall_for_raw_weights_alone(arguments, power, injected):
    make = fgo.target_acquisition
    if injected:
        make = optax.inject_hyperparams(make, static_args=fgo.STATIC_ARGS)
    tx = make(
        1.0, 20, handover_steps=RAMP, transform=optax.identity(),
        triggers={"acquisition": ALWAYS, "reask": ALWAYS}, **arguments,
    )  # fmt: skip
    rate = told(tx, KINDS[1.0])[0]["learning_rate"]
    slope = np.log(rate[-1] / rate[500]) / np.log(COUNT / 500)
    assert slope == pytest.approx(-power, abs=0.12)


def test_a_mean_of_no_directions_is_not_looked_at(monkeypatch):
    looks = []

    def counted(tree):
        jax.debug.callback(lambda: looks.append(1))
        return sum_squares(tree)

    monkeypatch.setattr(energy_exponent, "sum_squares", counted)
    phases = [
        fgo.acquisition(1e-2, transform=optax.identity()),
        fgo.execution(1e-2, decay=fgo.decays.adaptive(), slow_share=0.5),
    ]
    tx = fgo.phased(phases, [fgo.triggers.after(25)])
    state = tx.init(jnp.ones(2))
    update = jax.jit(tx.update)
    for _ in range(24):
        state = update(jnp.ones(2), state, jnp.ones(2))[1]
    jax.effects_barrier()
    assert len(looks) <= 1  # at the very first step everything is new
    for _ in range(41):
        state = update(jnp.ones(2), state, jnp.ones(2))[1]
    jax.effects_barrier()
    assert 4 <= len(looks) <= 6
