"""Micro-batches make one step, and the probe measures the step's noise on them."""

import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

IDENTITY = optax.identity()
PARAMS = {"w": jnp.linspace(0.0, 1.0, 6), "v": jnp.ones(3)}
NAN = float("nan")


def small(probe=None, **options):
    """One phase, which compiles at once."""
    phase = fgo.acquisition(0.1, 0, transform=IDENTITY)
    return fgo.phased([phase], [], probe, **options)


@functools.partial(jax.jit, static_argnums=0)
def scanned(tx, start, given):
    def call(carry, now):
        params, state = carry
        grads, extras = now
        updates, state = tx.update(grads, state, params, **extras)
        return (optax.apply_updates(params, updates), state), updates

    return jax.lax.scan(call, start, given)


def run(tx, grads, params=PARAMS, state=None, **extras):
    """Parameters, state and the updates of each call; everything stacked over the calls."""
    start = params, tx.init(params) if state is None else state
    (params, state), updates = scanned(tx, start, (grads, extras))
    return params, state, updates


def noise(calls, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "w": 1.0 + jax.random.normal(keys[0], (calls, 6)),
        "v": jax.random.normal(keys[1], (calls, 3)),
    }


def means(tree, every):
    return jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]).mean(1), tree)


def test_a_step_is_that_of_the_mean_gradient_and_the_mean_loss():
    every = 3
    grads, value = noise(6 * every), jnp.arange(6.0 * every)
    tx = small(clip_norm=0.5, average_weights=0.5)
    params, state, updates = run(fgo.accumulate(tx, every), grads, value=value)
    whole, expected, _ = run(tx, means(grads, every), value=means(value, every))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, whole)
    inner = state.inner_opt_state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), inner, expected)
    silent = [bool((updates["w"][i] == 0).all()) for i in range(6 * every)]
    assert silent == [(i + 1) % every > 0 for i in range(6 * every)]


def test_it_is_multi_steps_for_an_optimizer_without_a_probe():
    grads = noise(12)
    ours, *_ = run(fgo.accumulate(optax.adam(0.1), 4), grads, value=jnp.ones(12))
    theirs, *_ = run(optax.MultiSteps(optax.adam(0.1), 4), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)
    adam = optax.adam(0.1)
    one, plain = fgo.accumulate(adam, 1).init(PARAMS), adam.init(PARAMS)
    assert jax.tree.structure(one) == jax.tree.structure(plain)


@pytest.mark.parametrize("every", [5, pytest.param(2, marks=pytest.mark.slow)])
def test_the_probe_reads_the_noise_of_the_mean(every):
    """Planted: signal and covariance of a micro-batch, so those of the mean are known."""
    signal, scale = 0.5, jnp.sqrt(jnp.asarray([16.0] * 4 + [1.0] * 60))
    eigenvalues = np.asarray(scale) ** 2 / every
    power = 64 * signal**2
    truth = {
        "trace": eigenvalues.sum(),
        "agreement": power / (power + eigenvalues.sum()),
        "intrinsic_dimension": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
    }
    pairs, windows, params = 16, 100, {"w": jnp.zeros(64)}
    probe = fgo.probes.gradient_stream(pairs=pairs, width=512, every=2)
    tx = fgo.accumulate(small(probe), every)

    def call(state, number):
        noise = scale * jax.random.normal(jax.random.fold_in(jax.random.key(every), number), (64,))
        _, state = tx.update({"w": signal + noise}, state, params)
        return state, state.inner_opt_state.signals

    calls = jnp.arange(2 * pairs * windows * every)
    state, signals = jax.jit(lambda s: jax.lax.scan(call, s, calls))(tx.init(params))
    assert int(state.inner_opt_state.probe_state.evaluations) == windows
    last_of_window = slice(2 * pairs * every - 1, None, 2 * pairs * every)
    for name, number in truth.items():
        values, errors = np.asarray(signals[name])[last_of_window].T
        spread = np.std(values) / windows**0.5
        # The dimension is a ratio, unbiased to first order only.
        slack = 0.1 * number if name == "intrinsic_dimension" else 0.0
        assert abs(np.mean(values) - number) < 4 * spread + slack, name
        assert 0.6 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.7, name


def test_moving_parameters_do_not_leak_into_the_rows():
    """A quadratic without noise, on which pairs of steps see the movement as noise."""
    probe = fgo.probes.gradient_stream(pairs=4, width=32, every=2)

    def trace(tx, calls):
        def call(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = PARAMS, tx.init(PARAMS)
        (_, state), _ = jax.jit(lambda c: jax.lax.scan(call, c, length=calls))(start)
        return float(fgo.telemetry(state)["trace"])

    assert trace(small(probe), 8) > 1e-3
    assert abs(trace(fgo.accumulate(small(probe), 2), 16)) < 1e-10


def test_a_gradient_among_the_extras_is_the_mean_too():
    def update(updates, state, params=None, *, grad, **extras):
        return grad, state

    tx = fgo.accumulate(optax.GradientTransformationExtraArgs(IDENTITY.init, update), 4)
    grads = noise(4)
    *_, updates = run(tx, grads, grad=grads)
    np.testing.assert_allclose(updates["w"][-1], means(grads, 4)["w"][0], rtol=1e-6)


def test_extras_of_the_micro_batches_are_joined():
    seen = []

    def update(updates, state, params=None, **extras):
        seen.append(extras)
        return updates, state

    reader = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    tx = fgo.accumulate(optax.chain(reader, small()), 4)
    state = tx.init(PARAMS)
    calls = [(1.0, NAN), (2.0, 7.0), (3.0, NAN), (6.0, NAN)]
    for number, (value, validation) in enumerate(calls):
        batch = {"x": jnp.full(2, number)}
        _, state = tx.update(
            PARAMS, state, PARAMS, value=value, validation_value=validation, batch=batch, other=None
        )
    told = fgo.telemetry(state)
    assert (float(told["loss"]), float(told["validation"])) == (3.0, 7.0)
    assert set(seen[0]) == {"value", "validation_value", "batch", "micro_grads"}
    # The next step begins without either, and a report that is not repeated is not counted again.
    for value in (0.0, 0.0, 0.0, 4.0):
        _, state = tx.update(PARAMS, state, PARAMS, value=value, validation_value=NAN, batch=batch)
    assert float(fgo.telemetry(state)["loss"]) == 1.0
    assert np.isnan(state.inner_opt_state[1].clock.reported)


def test_a_bad_micro_batch_skips_one_step():
    grads = noise(8)
    bad = jax.tree.map(lambda x: x.at[1].set(NAN), grads)
    params, state, _ = run(fgo.accumulate(small(), 4), bad)
    later, _, _ = run(small(), jax.tree.map(lambda x: x[1:], means(grads, 4)))
    assert int(fgo.telemetry(state)["skipped_steps"]) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, later)


def test_saved_between_two_micro_batches_it_goes_on_bit_for_bit(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = fgo.accumulate(small(fgo.probes.gradient_stream(pairs=4, width=8, every=2)), 4)
    grads = noise(24)
    late = jax.tree.map(lambda x: x[10:], grads)
    params, state, _ = run(tx, jax.tree.map(lambda x: x[:10], grads))
    assert int(state.micro_step) == 2
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        by_orbax = checkpointer.restore(tmp_path / "state", tx.init(PARAMS))
    by_flax = flax.serialization.from_bytes(tx.init(PARAMS), flax.serialization.to_bytes(state))
    end = run(tx, late, params, state)[:2]
    for restored in (by_orbax, by_flax):
        jax.tree.map(np.testing.assert_array_equal, run(tx, late, params, restored)[:2], end)


def test_the_probe_is_fed_through_wrappers():
    grads = noise(16)

    def trace(inner, grads=grads, params=PARAMS):
        return fgo.telemetry(run(fgo.accumulate(inner, 2), grads, params)[1])["trace"]

    tx = small(fgo.probes.gradient_stream(pairs=4, width=8, every=2))
    # Raw micro-batches, where pairs of steps would be clipped ones.
    assert trace(optax.chain(optax.clip_by_global_norm(1e-3), tx)) == trace(tx)
    parts = optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"w": "a", "v": "b"})
    only = trace(tx, {"w": grads["w"]}, {"w": PARAMS["w"]})
    np.testing.assert_allclose(trace(parts), only, rtol=1e-5)


def test_devices_average_their_losses():
    """Each of four parts of the axis reports its own; all of them remember the mean."""
    tx = fgo.accumulate(small(axis_name="i"), 2, axis_name="i")

    def losses(value):
        state = tx.init(PARAMS)
        for number in range(2):
            extras = {"value": value + number, "validation_value": value}
            _, state = tx.update(PARAMS, state, PARAMS, **extras)
        return fgo.telemetry(state)["loss"], fgo.telemetry(state)["validation"]

    found = jax.vmap(losses, axis_name="i")(jnp.arange(4.0))
    np.testing.assert_allclose(found, [[2.0] * 4, [1.5] * 4])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_low_precision_gradients_are_summed_in_float32(dtype):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda p: jnp.stack([p, *[p * 2.0**-9] * 7]), params)
    tx = fgo.accumulate(optax.sgd(1.0), 8)
    *_, updates = run(tx, grads, optax.tree.cast(params, dtype))
    assert updates["v"].dtype == dtype
    exact = (-(1 + 7 * 2.0**-9) / 8) * jnp.ones(3)
    np.testing.assert_array_equal(updates["v"][-1], exact.astype(dtype))


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_and_parameters_may_differ_in_dtype(dtypes):
    grads, params = (optax.tree.cast(PARAMS, dtype) for dtype in dtypes)
    grads = jax.tree.map(lambda g: jnp.stack([g] * 4), grads)
    ours, _, updates = run(fgo.accumulate(optax.adamw(0.1), 2), grads, params)
    theirs, *_ = run(optax.MultiSteps(optax.adamw(0.1), 2), grads, params)
    for name, leaf in ours.items():
        assert leaf.dtype == updates[name].dtype == dtypes[1]
        np.testing.assert_allclose(*(np.float32(x) for x in (leaf, theirs[name])), atol=1e-2)


def test_a_resumed_run_may_have_fewer_micro_batches_in_a_step():
    grads = {"w": jnp.arange(9.0)}
    first, second = (jax.tree.map(lambda g, s=s: g[s], grads) for s in (slice(3), slice(3, 9)))
    params, state, _ = run(fgo.accumulate(optax.sgd(1.0), 4), first, {"w": jnp.zeros([])})
    *_, state, updates = run(fgo.accumulate(optax.sgd(1.0), 2), second, params, state)
    # The mean of the four that it has by then, and of two each from there on.
    np.testing.assert_array_equal(updates["w"], [-1.5, 0, -4.5, 0, -6.5, 0])
    assert int(state.micro_step) == 1


@pytest.mark.parametrize("every", [0, 1.5, "four"])
def test_a_wrong_number_of_micro_batches(every):
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        fgo.accumulate(optax.sgd(0.1), every)


def test_losses_are_averaged_over_the_micro_batches_that_have_one():
    tx = fgo.accumulate(small(), 2)
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS, value=8.0)
    assert float(fgo.telemetry(state)["loss"]) == 8.0
    _, state = tx.update(PARAMS, state, PARAMS, value=3.0)
    _, state = tx.update(PARAMS, state, PARAMS)  # the last call decides what is passed on
    assert float(fgo.telemetry(state)["loss"]) == 8.0
