"""Every row of the table on wrappers of optax in benchmarks/README.md."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

STEPS, NAN = 24, float("nan")
PARAMS = {"w": jnp.linspace(0.0, 1.0, 4), "v": jnp.ones(2)}
NOISE = {
    name: jax.random.normal(jax.random.key(i), (STEPS, *x.shape))
    for i, (name, x) in enumerate(PARAMS.items())
}


def build(learning_rate=0.1, **options):
    """Two phases and a flag to stop, without a probe: it compiles at once."""
    plain, t = {"transform": optax.identity()}, fgo.triggers
    phases = [fgo.acquisition(learning_rate, 4, **plain), fgo.execution(learning_rate, **plain)]
    ends = [t.after(8), t.if_given(t.plateau("validation", patience=2), "validation", 0)]
    return fgo.phased(phases, ends, handover_steps=3, **options)


def run(tx, params=PARAMS, noise=NOISE, extras=True):
    """Parameters, state and the telemetry of each call, from gradients params + noise."""
    tx = optax.with_extra_args_support(tx) if isinstance(tx, tuple) else tx

    def call(carry, now):
        params, state = carry
        noise, number = now
        point = getattr(params, "fast", params)
        grads = jax.tree.map(lambda p, n: p + n, point, noise)
        given = {"value": number, "validation_value": number} if extras else {}
        updates, state = tx.update(grads, state, params, **given)
        return (optax.apply_updates(params, updates), state), fgo.telemetry(state)

    calls = jnp.arange(len(jax.tree.leaves(noise)[0]), dtype=jnp.float32)
    (params, state), told = jax.jit(lambda c: jax.lax.scan(call, c, (noise, calls)))(
        (params, tx.init(params))
    )
    return params, state, told


@pytest.fixture(scope="module")
def alone():
    return run(build(average_weights=0.5))


def same(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), left, right)


WITHOUT_EFFECT = {
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "named_chain": lambda tx: optax.named_chain(("first", optax.identity()), ("fgo", tx)),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked nowhere": lambda tx: optax.masked(tx, True),
    "keep_best": fgo.keep_best,
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_wrapper_without_effect_changes_nothing(name, alone):
    params, state, told = run(WITHOUT_EFFECT[name](build(average_weights=0.5)))
    same(params, alone[0])
    assert told.keys() == alone[2].keys()
    same(told, alone[2])
    assert float(told["loss"][-1]) == STEPS - 1  # value= came through
    assert bool(fgo.should_stop(state))  # and so did validation_value=
    same(fgo.eval_params(state, params), fgo.eval_params(alone[1], alone[0]))


def test_phases_of_the_test_runs(alone):
    assert [int(phase) for phase in alone[2]["phase"]] == [0] * 8 + [1] * 16


def test_parts_of_a_partition_run_each_for_itself():
    labels = {"w": "x", "v": "y"}
    params, state, told = run(optax.partition({"x": build(), "y": build(0.3)}, labels))
    for name, rate, label in (("w", 0.1, "x"), ("v", 0.3, "y")):
        part, _, single = run(build(rate), {name: PARAMS[name]}, {name: NOISE[name]})
        same(params[name], part[name])
        same(told[f"inner_states/{label}/inner_state/learning_rate"], single["learning_rate"])
    assert bool(fgo.should_stop(state))


def test_masked_hands_the_other_leaves_their_raw_gradients():
    """As optax does it: with another optimizer or `set_to_zero` for them, use partition."""
    params, _, _ = run(optax.masked(build(), {"w": True, "v": False}))
    only, _, _ = run(build(), {"w": PARAMS["w"]}, {"w": NOISE["w"]})
    same(params["w"], only["w"])
    assert float(jnp.max(jnp.abs(params["v"]))) > 1e3  # ascent: no rate and no minus sign


def repeated(every):
    return jax.tree.map(lambda x: jnp.repeat(x, every, 0), NOISE)


def test_multi_steps_and_accumulation_by_hand_and_ours_make_the_same_steps(alone):
    every, noise = 2, repeated(2)
    params, state, told = run(optax.MultiSteps(build(average_weights=0.5), every), noise=noise)
    ours, _, joined = run(fgo.accumulate(build(average_weights=0.5), every), noise=noise)
    # By hand: the mean of equal gradients is that gradient, and one call for each mean.
    for found in (params, ours):
        same(found, alone[0])
    same(told["phase"][every - 1 :: every], alone[2]["phase"])
    # Losses 0, 1, 2, ...: optax keeps the last micro-batch's, ours is the mean of both.
    assert told["loss"][every - 1 :: every].tolist() == [2.0 * i + 1.0 for i in range(STEPS)]
    assert joined["loss"][every - 1 :: every].tolist() == [2.0 * i + 0.5 for i in range(STEPS)]
    assert int(state.gradient_step) == STEPS


def test_a_saved_rate_of_inject_hyperparams_wins_over_the_constructors():
    """It is optax's own: the number lies in the state, so set it there."""
    make = optax.inject_hyperparams(lambda learning_rate: build(learning_rate))
    params, state, told = run(make(learning_rate=0.1))
    np.testing.assert_allclose(told["learning_rate"][8], 0.1, rtol=1e-5)
    slower = make(learning_rate=0.05)
    _, after = jax.jit(slower.update)(PARAMS, state, params)
    state.hyperparams["learning_rate"] = jnp.float32(0.05)
    _, mended = jax.jit(slower.update)(PARAMS, state, params)
    old, new = (float(fgo.telemetry(s)["learning_rate"]) for s in (after, mended))
    np.testing.assert_allclose(new, old / 2, rtol=1e-5)


def test_apply_if_finite_and_our_guard():
    """The outer one skips bad gradients before ours sees them; bad losses are left to ours."""
    tx = optax.apply_if_finite(build(), 1)
    bad, state = jax.tree.map(lambda p: p * NAN, PARAMS), tx.init(PARAMS)
    update, skipped = jax.jit(tx.update), []
    for grads, value in ((bad, 1.0), (PARAMS, NAN), (bad, 1.0), (bad, 1.0)):
        updates, state = update(grads, state, PARAMS, value=jnp.float32(value))
        assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(updates))
        skipped.append(int(fgo.telemetry(state)["skipped_steps"]))
    # The fourth, one more than it may skip, reaches ours.
    assert skipped == [0, 1, 1, 2]
    assert int(state.total_notfinite) == 3


def test_lookahead_takes_no_extra_arguments():
    start = optax.LookaheadParams.init_synced(PARAMS)
    tx = optax.lookahead(build(), sync_period=5, slow_step_size=0.5)
    with pytest.raises(TypeError, match="value"):
        tx.update(PARAMS, tx.init(start), start, value=1.0)
    params, _, told = run(tx, start, extras=False)
    assert [int(phase) for phase in told["phase"]] == [0] * 8 + [1] * 16
    assert np.isnan(told["loss"]).all()
    assert not np.array_equal(params.slow["w"], PARAMS["w"])


def test_schedule_free_around_it(alone):
    tx = optax.contrib.schedule_free(build(), 0.1, b1=0.9)
    params, state, told = run(tx)
    same(told["learning_rate"], alone[2]["learning_rate"])
    assert float(told["loss"][-1]) == STEPS - 1
    assert bool(fgo.should_stop(state))
    averaged = optax.contrib.schedule_free_eval_params(state, params)
    assert float(optax.tree.norm(averaged)) < float(optax.tree.norm(PARAMS))


@pytest.mark.parametrize(
    "inner",
    [
        optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
        optax.contrib.schedule_free_sgd(0.1),
        optax.contrib.schedule_free_adamw(0.1),
    ],
)
def test_schedule_free_inside_is_refused(inner):
    tx = fgo.target_acquisition(0.1, transform=inner)
    with pytest.raises(ValueError, match="has a learning rate or a minus sign already"):
        tx.init(PARAMS)
