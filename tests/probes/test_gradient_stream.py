"""The default probe: its sketch, its estimates, its cadence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fgo_jax as fgo
from fgo_jax.linalg.sketch import sketch_tree
from fgo_jax.probes.probe import ProbeInputs
from tests.problems import mlp_batch, mlp_loss, mlp_params


def tree(key):
    keys = jax.random.split(jax.random.key(key), 4)
    return {
        "matrix": jax.random.normal(keys[0], (48, 96)),
        "kernel": jax.random.normal(keys[1], (3, 3, 16, 32)),
        "vector": jax.random.normal(keys[2], (3000,)),
        "scalar": jax.random.normal(keys[3], ()),
    }


def inner(left, right):
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
    return float(sum(jax.tree.leaves(products)))


def test_sketch_keeps_inner_products_on_average():
    x, y = tree(0), jax.tree.map(lambda a, b: a + 0.5 * b, tree(0), tree(1))
    draws = 400
    sketch = jax.jit(jax.vmap(lambda t, seed: sketch_tree(t, seed, 256), in_axes=(None, 0)))
    seeds = jnp.arange(draws, dtype=jnp.uint32) * 7919
    products = jnp.sum(sketch(x, seeds) * sketch(y, seeds), -1)  # [draws, 2]
    error = np.std(products) / (2 * draws) ** 0.5
    assert abs(np.mean(products) - inner(x, y)) < 3 * error
    # Two sketches of one draw are independent: their errors do not correlate.
    assert abs(np.corrcoef(np.asarray(products).T)[0, 1]) < 3 / draws**0.5


def test_small_trees_are_sketched_exactly_up_to_signs():
    x = {"theta": jax.random.normal(jax.random.key(0), (100,))}
    rows = sketch_tree(x, jnp.uint32(3), 1024)
    np.testing.assert_allclose(jnp.sum(rows**2, -1), inner(x, x), rtol=1e-5)


def stream(probe, gradients, steps):
    """Estimates after each step of a stream of gradients."""
    key = jax.random.key(0)

    def step(state, number):
        grads = gradients(number)
        inputs = ProbeInputs(grads, grads, None, None, jax.random.fold_in(key, number), number)
        state = jax.lax.cond(
            probe.due(state, number), probe.measure, lambda _, old: old, inputs, state
        )
        return state, (state.evaluations, probe.read(state))

    return jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(steps)))(probe.init(gradients(0)))


SPECTRA = {"flat": np.ones(60), "geometric": 0.9 ** np.arange(200), "outlier": [10.0] + [0.5] * 99}
PAIRS = 16


@functools.cache
def of_spectra():
    """State and estimates of a stream of each spectrum, by one program."""
    probe = fgo.probes.gradient_stream(pairs=PAIRS, width=512, every=2)

    def one(scale):
        def gradients(number):
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(5), number), scale.shape)
            return {"w": 3.0 + scale * noise}

        return stream(probe, gradients, 2 * PAIRS * 150)

    scales = [np.pad(values, (0, 200 - len(values))) ** 0.5 for values in SPECTRA.values()]
    found = jax.device_get(jax.jit(lambda each: jax.lax.map(one, each))(np.float32(scales)))
    return {name: jax.tree.map(lambda x, i=i: x[i], found) for i, name in enumerate(SPECTRA)}


@pytest.mark.parametrize("name", SPECTRA)
def test_dimension_is_the_noise_covariances_whatever_the_mean(name):
    eigenvalues = np.asarray(SPECTRA[name])
    truth = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    state, (_, estimates) = of_spectra()[name]
    windows = slice(2 * PAIRS - 1, None, 2 * PAIRS)
    dimension, error = (np.asarray(x)[windows] for x in estimates["intrinsic_dimension"])
    # The log of a ratio is nearly unbiased where the ratio of 16 rows is not.
    mean = np.exp(np.nanmean(np.log(dimension)))
    assert abs(mean / truth - 1) < 0.1
    assert np.nanmedian(error) < truth
    trace = np.asarray(estimates["trace"].value)[windows]
    spread = np.std(trace) / len(trace) ** 0.5
    assert abs(trace.mean() - eigenvalues.sum()) < 4 * spread
    assert int(state.held) < 10


def test_agreement_tells_signal_from_noise():
    probe = fgo.probes.gradient_stream(pairs=64, every=2)

    def one(signal):
        def gradients(number):
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), (50,))
            return {"w": signal * jnp.ones(50) + noise}

        return stream(probe, gradients, 128)[1][1]["agreement"]

    signals = np.float32([0.0, 1.0, 30.0])
    values, errors = jax.jit(lambda each: jax.lax.map(one, each))(signals)
    for signal, value, error in zip(signals, values[:, -1], errors[:, -1], strict=True):
        assert abs(value - signal**2 / (signal**2 + 1)) < 4 * error + 1e-6


def test_the_two_parts_of_complex_gradients_count_alike():
    def parts(number):
        return jax.random.normal(jax.random.fold_in(jax.random.key(1), number), (2, 20))

    probe = fgo.probes.gradient_stream(pairs=4, width=64)
    _, (_, expected) = stream(probe, lambda number: {"w": parts(number)}, 12)
    _, (_, found) = stream(probe, lambda number: {"w": jax.lax.complex(*parts(number))}, 12)
    assert np.isfinite(expected["agreement"].value[-1])
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("probe", [fgo.probes.gradient_stream, fgo.probes.trajectory])
def test_no_ranks_are_promoted(probe):
    """Some set `jax_numpy_rank_promotion` to find mistakes of their own; tracing is enough."""
    params = {"w": jnp.ones((80, 90)), "b": jnp.ones(90)}
    number, key = jnp.int32(3), jax.random.key(0)
    with jax.numpy_rank_promotion("raise"):
        probe = probe(width=64)
        inputs = ProbeInputs(params, params, params, None, key, number)
        jax.eval_shape(lambda state: probe.read(probe.measure(inputs, state)), probe.init(params))


def test_zero_gradients_say_nothing():
    _, (evaluations, estimates) = stream(
        fgo.probes.gradient_stream(pairs=4), lambda number: {"w": jnp.zeros(10)}, 40
    )
    assert int(evaluations[-1]) > 0
    assert np.isnan(estimates["agreement"].value).all()
    assert np.isnan(estimates["intrinsic_dimension"].value).all()


def test_windows_come_at_a_constant_rate_per_factor_of_time():
    probe = fgo.probes.gradient_stream(pairs=4)
    steps = 4000
    _, (evaluations, _) = stream(probe, lambda n: {"w": jnp.sin(n + jnp.arange(4.0))}, steps)
    counts = np.asarray(evaluations)
    late = counts[-1] - counts[steps // 2]
    before = counts[steps // 2] - counts[steps // 4]
    assert abs(late - before) <= 2
    fixed = fgo.probes.gradient_stream(pairs=4, every=10)
    _, (evaluations, _) = stream(fixed, lambda n: {"w": jnp.sin(n + jnp.arange(4.0))}, 400)
    assert int(evaluations[-1]) == 10


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pairs": 3}, "pairs must be an integer >= 4"),
        ({"width": 0}, "width must be an integer >= 1"),
        ({"every": 1}, "every must be an integer >= 2"),
        ({"energy": 0.0}, r"energy must lie in \(0, 1\]"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        fgo.probes.gradient_stream(**kwargs)


def test_one_and_eight_devices_decide_alike():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def put(tree, spec):
        return jax.device_put(tree, NamedSharding(mesh, spec))

    tx = fgo.phased(
        [fgo.acquisition(1e-2), fgo.reask(1e-2, transform=optax.scale_by_rms())],
        [fgo.triggers.after(20)],
        fgo.probes.gradient_stream(pairs=4),
        handover_steps=10,
    )

    def step(params, state, batch):
        value, grads = jax.value_and_grad(mlp_loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value)
        return jax.tree.map(jnp.add, params, updates), state

    def run(params, place):
        state, update = jax.jit(tx.init)(params), jax.jit(step)
        for number in range(40):
            params, state = update(params, state, place(mlp_batch(number)))
        return params, state

    one, alone = run(mlp_params(), lambda batch: batch)
    params = mlp_params()
    params["hidden"]["kernel"] = put(params["hidden"]["kernel"], P(None, "model"))
    params["hidden"]["bias"] = put(params["hidden"]["bias"], P("model"))
    params["out"]["kernel"] = put(params["out"]["kernel"], P("model", None))
    many, state = run(params, lambda batch: put(batch, P("data")))
    assert many["hidden"]["kernel"].sharding.spec == P(None, "model")
    assert int(state.clock.phase) == int(alone.clock.phase) == 1
    # Sums in another order: the same trajectory to the rounding that forty steps amplify.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), many, one)
    np.testing.assert_allclose(state.signals["trace"], alone.signals["trace"], rtol=1e-3)
    np.testing.assert_array_equal(state.clock.started, alone.clock.started)


def test_a_dimension_that_is_held_is_no_new_measurement():
    probe = fgo.probes.gradient_stream(width=256, every=2)
    plain = optax.identity()
    phases = [fgo.acquisition(1e-9, transform=plain), fgo.execution(1e-9, transform=plain)]
    tx = fgo.phased(phases, [fgo.triggers.stall("intrinsic_dimension")], probe)
    params = jnp.zeros(500)

    def step(state, number):
        noise = jax.random.normal(jax.random.key(number), (500,))
        grads = jnp.where(number < 16, noise, jnp.ones(500))  # then without any noise
        return tx.update(grads, state, params)[1], None

    state = jax.lax.scan(step, tx.init(params), jnp.arange(120))[0]
    assert int(state.probe_state.evaluations) > 5
    assert int(state.probe_state.held) > 4
    assert int(state.clock.phase) == 0  # one number does not show that anything is at rest
