"""Transitions, hand-over, guard and extras of `phased`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.state import AT_START, BY_DEADLINE, BY_HAND, BY_TRIGGER, NOT_BEGUN
from tests.problems import mlp_gradient, mlp_params, train, trees_equal

after, never = fgo.triggers.after, fgo.triggers.never
HANDOVER = 10


def two_phases(triggers, second=None, **kwargs):
    return fgo.phased(
        [
            fgo.acquisition(1e-2, transform=optax.scale_by_adam()),
            fgo.reask(1e-2, cut=0.6, transform=second or optax.scale_by_rms()),
        ],
        triggers,
        handover_steps=HANDOVER,
        **kwargs,
    )


def history(tx, steps, extras=lambda number: {}, params=None):
    """Telemetry of every step, stacked, and the final state."""
    params = mlp_params() if params is None else params

    def step(carry, number):
        params, state = carry
        grads = mlp_gradient(params, number)
        updates, state = tx.update(grads, state, params, **extras(number))
        return (optax.apply_updates(params, updates), state), fgo.telemetry(state)

    (_, state), record = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))(
        (params, tx.init(params))
    )
    return jax.tree.map(np.asarray, record), state


@functools.cache
def one_transition():
    """The record of a phase that ends after its fifth step, and of what follows."""
    return history(two_phases([after(4)]), 5 + 2 * HANDOVER)


def test_a_decision_at_step_t_takes_effect_at_t_plus_one():
    record, state = one_transition()
    # The update with phase_step 4 is the fifth; the state after it is in phase 1.
    np.testing.assert_array_equal(record["phase"][:8], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(record["learning_rate"][:5], 1e-2, rtol=1e-6)
    assert record["learning_rate"][5] < 1e-2
    np.testing.assert_array_equal(state.clock.started, [0, 5])
    np.testing.assert_array_equal(state.clock.causes, [AT_START, BY_TRIGGER])


def test_the_rate_glides_log_linearly_and_ends_on_the_law():
    record, _ = one_transition()
    glide = record["learning_rate"][5 : 5 + HANDOVER]
    expected = 1e-2 * 0.4 ** (np.arange(1, HANDOVER + 1) / HANDOVER)
    np.testing.assert_allclose(glide, expected, rtol=1e-5)
    np.testing.assert_allclose(record["learning_rate"][5 + HANDOVER :], 4e-3, rtol=1e-6)


def test_the_old_transform_drives_while_the_new_one_fills():
    record, state = one_transition()
    np.testing.assert_array_equal(
        record["handover_left"][4 : 5 + HANDOVER], range(HANDOVER, -1, -1)
    )
    assert int(state.clock.driver) == 1
    # Adam counted its five steps and the hand-over, the new transform saw the rest.
    assert int(state.transforms[0].count) == 5 + HANDOVER
    first, second = (jnp.abs(s.nu["out"]["kernel"]).sum() for s in state.transforms)
    assert first > 0
    assert second > 0


def test_the_new_transform_takes_over_at_the_old_ones_norm():
    # A transform a thousand times too long: the graft must hide that at the take-over.
    long = optax.chain(optax.scale_by_adam(), optax.scale(1e3))
    tx = two_phases([after(4)], second=long)
    params, state = mlp_params(), None
    state = tx.init(params)
    norms = []
    for number in range(5 + HANDOVER + 2 * HANDOVER):
        grads = mlp_gradient(params, number)
        updates, state = jax.jit(tx.update)(grads, state, params)
        rate = float(state.fgo_learning_rate)
        norms.append(float(optax.tree.norm(updates["out"]["kernel"])) / rate)
        params = optax.apply_updates(params, jax.tree.map(lambda u: 1e-3 * u, updates))
    takeover = 5 + HANDOVER
    assert 0.3 < norms[takeover] / norms[takeover - 1] < 3.0
    assert norms[-1] > 100 * norms[takeover], (
        "the graft fades, and the transform's own norm is back"
    )


def test_phases_that_share_a_transform_need_no_handover():
    adam = optax.scale_by_adam()
    tx = fgo.phased(
        [fgo.acquisition(1e-2, transform=adam), fgo.execution(1e-2, transform=adam)],
        [after(4)],
    )
    record, state = history(tx, 8)
    assert len(state.transforms) == 1
    assert state.grafts == ()
    assert not record["handover_left"].any()


def test_min_steps_hold_a_trigger_back():
    record, _ = history(two_phases([after(0)], min_steps=(6, 0)), 8)
    np.testing.assert_array_equal(record["phase"], [0, 0, 0, 0, 0, 1, 1, 1])


def test_deadlines_reach_every_phase_and_say_so():
    rms = optax.scale_by_rms()
    tx = fgo.phased(
        [
            fgo.acquisition(1e-2),
            fgo.reask(1e-2, transform=rms),
            fgo.execution(1e-2, transform=rms),
        ],
        [never(), never()],
        handover_steps=5,
        total_steps=40,
        deadlines=(0.25, 0.5),
    )
    record, state = history(tx, 40)
    np.testing.assert_array_equal(state.clock.started, [0, 10, 20])
    np.testing.assert_array_equal(state.clock.causes, [AT_START, BY_DEADLINE, BY_DEADLINE])
    assert record["learning_rate"][-1] < 0.11 * record["learning_rate"][20], "the decay meets T"


def test_without_a_horizon_no_phase_ends_by_itself():
    record, state = history(two_phases([never()]), 60)
    assert not record["phase"].any()
    np.testing.assert_array_equal(state.clock.causes, [AT_START, NOT_BEGUN])


@functools.cache
def three_steps_of_the_protocol():
    """Its compiled update, and (gradients, state, parameters) after three steps."""
    tx = fgo.target_acquisition(1e-2, 5, average_weights=0.1, clip_norm=1.0)
    params = mlp_params()
    state = tx.init(params)
    update = jax.jit(tx.update)
    for number in range(3):
        grads = mlp_gradient(params, number)
        updates, state = update(grads, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    return update, grads, state, params


@pytest.mark.parametrize("bad", ["gradient", "value", "parameters"])
def test_a_non_finite_step_changes_nothing_but_its_counter(bad):
    update, grads, state, params = three_steps_of_the_protocol()
    poisoned, value = grads, 1.0
    if bad == "value":
        value = float("inf")
    else:
        poisoned = {**grads, "out": {"kernel": grads["out"]["kernel"].at[0, 0].set(jnp.nan)}}
    if bad == "parameters":  # an overflow, which is where such a gradient comes from
        params = jax.tree.map(lambda p: p.at[(0,) * p.ndim].set(jnp.inf), params)
    updates, after_it = update(poisoned, state, params, value=value)
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates))
    assert int(after_it.skipped_steps) == 1
    assert trees_equal(after_it._replace(skipped_steps=state.skipped_steps), state)


def test_clip_norm_equals_clipping_before_and_the_probe_sees_raw_gradients():
    clip = 0.05
    probe = fgo.probes.gradient_stream(pairs=4)
    adam = optax.trace(0.9)
    inside = fgo.phased(
        [fgo.acquisition(1e-2, transform=adam)],
        [fgo.triggers.stall("intrinsic_dimension") & never()],
        probe,
        clip_norm=clip,
    )
    outside = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(1e-2, momentum=0.9))
    params, state, _ = train(inside, 30)
    reference, _, _ = train(outside, 30)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, reference
    )
    # A clipped gradient has norm 0.05 at most, and so has no trace above its square.
    assert float(state.signals["trace"][0]) > 2 * clip**2


def test_force_phase_and_restart():
    tx = fgo.target_acquisition(1e-2, 5, transform={"acquisition": optax.scale_by_adam()})
    params = mlp_params()
    state = tx.init(params)
    grads = mlp_gradient(params, 0)
    update = jax.jit(tx.update)
    _, state = update(grads, state, params)
    state = fgo.force_phase(state, "execution")
    _, state = update(grads, state, params)
    assert int(state.clock.phase) == 2
    assert int(state.clock.causes[2]) == BY_HAND
    _, state = update(grads, state, params)
    assert int(state.clock.handover_left) > 0, "the execution's own transform fills"
    again = fgo.restart(state)
    assert int(again.clock.phase) == 0
    assert trees_equal(again.transforms, state.transforms)
    _, again = update(grads, again, params)
    np.testing.assert_allclose(again.fgo_learning_rate, 1e-2 / 5, rtol=1e-6)
    with pytest.raises(ValueError, match="not among the 3 phases"):
        fgo.force_phase(state, 3)
    with pytest.raises(ValueError, match="must be one of acquisition, reask, execution"):
        fgo.force_phase(state, "polish")


def test_after_a_restart_the_probe_measures_as_at_the_start():
    tx = fgo.phased(
        [fgo.acquisition(1e-2, transform=optax.scale_by_adam())],
        [],
        fgo.probes.gradient_stream(pairs=4),
    )
    params = mlp_params()

    def step(state, number):
        _, state = tx.update(mlp_gradient(params, number), state, params)
        return state, state.probe_state.evaluations

    @jax.jit
    def windows(state):
        state, closed = jax.lax.scan(step, state, jnp.arange(195))
        return jnp.diff(closed), state

    # 195 steps end inside a window, which must not go on in the new run.
    first, state = windows(tx.init(params))
    assert int(state.probe_state.half) + int(state.probe_state.filled) > 0
    again, _ = windows(fgo.restart(state))
    assert first.sum() > 5
    np.testing.assert_array_equal(again, first)


def test_should_stop_after_validation_stopped_improving():
    sgd = fgo.acquisition(1e-2, transform=optax.identity())
    tx = fgo.phased([sgd], [fgo.triggers.plateau("validation", patience=3)])

    def extras(number):
        # Measured at every fourth step; the best is the third measurement.
        value = jnp.where(number < 12, 1.0 / (number + 1.0), 1.0)
        return {"validation_value": jnp.where(number % 4 == 0, value, jnp.nan)}

    record, _ = history(tx, 24, extras)
    assert not record["stop"][:20].any()
    assert record["stop"][20:].all()


def test_weight_decay_and_mask_may_differ_between_phases():
    plain = fgo.acquisition(1e-2, transform=optax.identity(), weight_decay=0.5)
    other = fgo.reask(
        1e-2,
        cut=0.0,
        transform=optax.identity(),
        weight_decay=0.1,
        mask=lambda p: jax.tree.map(lambda x: x.ndim > 0, p),
    )
    tx = fgo.phased([plain, other], [after(1)], handover_steps=1)
    params = {"a": jnp.ones(2), "b": jnp.asarray(1.0)}
    zeros = optax.tree.zeros_like(params)
    state = tx.init(params)
    seen = []
    update = jax.jit(tx.update)
    for _ in range(4):
        updates, state = update(zeros, state, params)
        seen.append((float(updates["a"][0]), float(updates["b"])))
    np.testing.assert_allclose(seen[0], (-5e-3, -5e-3), rtol=1e-6)
    np.testing.assert_allclose(seen[3], (-1e-3, 0.0), rtol=1e-6)


def test_extra_arguments_reach_the_phases_transforms():
    def update(updates, state, params=None, *, factor, **extra):
        return jax.tree.map(lambda g: factor * g, updates), state

    scale_by_extra = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = fgo.phased([fgo.acquisition(1.0, transform=scale_by_extra)], [])
    updates, _ = tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}), None, factor=3.0)
    np.testing.assert_allclose(updates["w"], -3.0)


OPTIMIZERS = {
    "default": fgo.target_acquisition(0.1),
    "all means": fgo.target_acquisition(
        0.1, average_weights=0.1, weight_decay=0.1, clip_norm=1.0, total_steps=300
    ),
    "accumulated": fgo.accumulate(fgo.target_acquisition(0.1), 4),
    "layer noise": fgo.scale_by_layer_noise(fgo.scale_by_kronecker_fisher()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_number_changes_its_type_unasked(name):
    tx, params = OPTIMIZERS[name], {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda p, v: tx.update(p, tx.init(p), p, value=v), params, jnp.float32(1.0))


def test_numbers_of_python_are_parameters():
    tx = fgo.target_acquisition(1e-2, average_weights=0.1)
    params, grads = {"temperature": 3.0}, {"temperature": jnp.float32(1.0)}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert -1e-2 <= float(updates["temperature"]) < 0


@pytest.mark.parametrize("wrap", ["chain", "masked", "MultiSteps", "inject", "partition"])
def test_telemetry_finds_the_state_through_wrappers(wrap):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = fgo.target_acquisition(1e-2)
    wrapped = {
        "chain": lambda: optax.chain(optax.clip(1.0), tx),
        "masked": lambda: optax.masked(tx, {"a": True, "b": False}),
        "MultiSteps": lambda: optax.MultiSteps(tx, 2),
        "inject": lambda: optax.inject_hyperparams(
            fgo.target_acquisition, static_args=fgo.STATIC_ARGS
        )(learning_rate=1e-2),
        "partition": lambda: optax.partition({"x": tx, "y": tx}, {"a": "x", "b": "y"}),
    }[wrap]()
    state = wrapped.init(params)
    numbers = fgo.telemetry(state)
    phases = [value for name, value in numbers.items() if name.split("/")[-1] == "phase"]
    assert len(phases) == (2 if wrap == "partition" else 1)
    assert not bool(fgo.should_stop(state))
    if wrap != "partition":
        assert optax.tree.get(state, "FgoState") is not None


def test_telemetry_without_a_state_says_what_to_do():
    with pytest.raises(ValueError, match=r"pass the optimizer state of fgo\.target_acquisition"):
        fgo.telemetry(optax.adam(1e-3).init({"w": jnp.ones(2)}))
