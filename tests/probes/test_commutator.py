"""The commutator of two batches against its closed form on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.probes.probe import ProbeInputs

SIZE, PAIRS, EXAMPLES = 40, 3, 24
RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.standard_normal((EXAMPLES, SIZE)).astype("f4"),
    "y": RNG.standard_normal(EXAMPLES).astype("f4"),
}


def losses(params, batch):
    """Quadratic, one number for each example."""
    everything = jnp.concatenate([params["a"], params["b"]])
    return 0.5 * jnp.square(batch["x"] @ everything - batch["y"])


def tree(vector):
    return {"a": vector[:15], "b": vector[15:]}


def measured(probe, points):
    """All readings along some points, measured at each of them."""

    def step(state, now):
        point, number = now
        inputs = ProbeInputs(None, None, tree(point), BATCH, jax.random.key(1), number)
        state = probe.measure(inputs, state)
        return state, probe.read(state)

    over = (jnp.asarray(points), 1 + jnp.arange(len(points)))
    scan = jax.jit(lambda state: jax.lax.scan(step, state, over)[1])
    return jax.device_get(scan(probe.init(tree(points[0]))))


def parts(pairs=PAIRS):
    size = EXAMPLES // (2 * pairs)
    return [
        [{k: v[(2 * i + j) * size :][:size].astype("f8") for k, v in BATCH.items()} for j in (0, 1)]
        for i in range(pairs)
    ]


def exact(point, halves):
    """(H_B g_A - H_A g_B, |g_A| |g_B|) in float64."""
    hessians = [part["x"].T @ part["x"] / len(part["y"]) for part in halves]
    grads = [part["x"].T @ (part["x"] @ point - part["y"]) / len(part["y"]) for part in halves]
    delta = hessians[1] @ grads[0] - hessians[0] @ grads[1]
    return delta, np.prod([np.linalg.norm(g) for g in grads])


POINTS = np.cumsum(RNG.standard_normal((7, SIZE)) * 0.3, 0).astype("f4")


@pytest.mark.parametrize("rate", [None, 0.5])
def test_the_defect_on_quadratics_does_not_depend_on_the_rate(rate):
    probe = fgo.probes.commutator(losses, pairs=PAIRS, examples=EXAMPLES, rate=rate, snapshots=5)
    told = measured(probe, POINTS)
    defects, shares = [], []
    for number, point in enumerate(POINTS):
        found = [exact(point, halves) for halves in parts()]
        defects.append([np.linalg.norm(delta) / norms for delta, norms in found])
        if number >= 4:
            ring = POINTS[number - 4 : number + 1].astype("f8")
            basis = np.linalg.svd(ring - ring.mean(0))[2][:3]
            energy = [np.sum((basis @ d) ** 2) / np.sum(d**2) for d, _ in found]
            shares.append((np.mean(energy), np.std(energy, ddof=1) / PAIRS**0.5))
    value, error = told["commutator_defect"]
    np.testing.assert_allclose(value, np.median(defects, 1), rtol=2e-4)
    spread = np.std(defects, axis=1, ddof=1) * (np.pi / 2 / PAIRS) ** 0.5
    np.testing.assert_allclose(error, spread, rtol=2e-3)
    # So few parameters are sketched exactly, up to their signs.
    assert np.isnan(told["commutator_share"].value[:4]).all()
    np.testing.assert_allclose(np.stack(told["commutator_share"])[:, 4:].T, shares, rtol=2e-3)
    np.testing.assert_allclose(told["random_share"].value, 3 / SIZE, rtol=1e-6)
    assert np.isfinite(told["path_rank"].value[4:]).all()


def test_equal_halves_commute():
    twice = jax.tree.map(lambda x: np.concatenate([x[:8], x[:8]]), BATCH)
    probe = fgo.probes.commutator(losses, pairs=1, examples=16)
    inputs = ProbeInputs(None, None, tree(POINTS[0]), twice, jax.random.key(0), jnp.int32(1))
    read = probe.read(jax.jit(probe.measure)(inputs, probe.init(inputs.params)))
    assert read["commutator_defect"].value == 0
    assert np.isnan(read["commutator_defect"].error)


@pytest.mark.parametrize("size", [1e-4, 100.0])
def test_a_small_or_large_loss_has_its_defect_in_float16_too(size):
    def sized(params, batch):
        numbers = jax.tree.map(lambda x: jnp.asarray(x, params["a"].dtype), batch)
        return size * losses(params, numbers).astype(jnp.float32)

    probe = fgo.probes.commutator(sized, pairs=PAIRS, examples=EXAMPLES)
    defects = []
    for kind in (jnp.float16, jnp.float32):
        point = optax.tree.cast(tree(POINTS[0]), kind)
        inputs = ProbeInputs(None, None, point, BATCH, jax.random.key(0), jnp.int32(1))
        read = probe.read(jax.jit(probe.measure)(inputs, probe.init(point)))
        defects.append(read["commutator_defect"].value)
    np.testing.assert_allclose(*defects, rtol=0.01)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_the_two_parts_of_complex_parameters_count_alike(rate):
    def quartic(params, batch):
        return jnp.square(losses(params, batch))

    def of_complex(params, batch):
        z = params["z"]
        return quartic({"a": z.real, "b": jnp.concatenate([z.imag, params["b"]])}, batch)

    pair = tree(jnp.asarray(POINTS[0]))
    both = {"z": jax.lax.complex(pair["a"], pair["b"][:15]), "b": pair["b"][15:]}
    found = []
    for loss, point in ((quartic, pair), (of_complex, both)):
        probe = fgo.probes.commutator(loss, pairs=PAIRS, examples=EXAMPLES, rate=rate)
        inputs = ProbeInputs(None, None, point, BATCH, jax.random.key(0), jnp.int32(1))
        found.append(probe.read(jax.jit(probe.measure)(inputs, probe.init(point))))
    np.testing.assert_allclose(*(read["commutator_defect"] for read in found), rtol=1e-3)


def test_a_trigger_reads_it_and_the_batch_must_fit():
    plain = optax.identity()
    probe = fgo.probes.commutator(losses, every=2, pairs=1, snapshots=4)
    tx = fgo.phased(
        [fgo.acquisition(0.1, transform=plain), fgo.execution(0.1, 0.0, transform=plain)],
        [fgo.triggers.above("commutator_defect", 0.0)],
        probe,
    )
    params = tree(jnp.ones(SIZE))

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: jnp.mean(losses(p, BATCH)))(params)
        updates, state = tx.update(grads, state, params, batch=BATCH)
        return (optax.apply_updates(params, updates), state), state.clock.phase

    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, None, 8))
    # Measured at steps 2 and 4, which is as often in a row as the condition asks.
    phases = np.asarray(scan((params, tx.init(params)))[1])
    assert np.argmax(phases) == 4
    with pytest.raises(ValueError, match="reads 2 examples but batch has 1"):
        tx.update(params, tx.init(params), params, batch=jax.tree.map(lambda x: x[:1], BATCH))


@pytest.mark.parametrize(
    "wrong",
    [
        {"pairs": 0},
        {"examples": 9},
        {"rate": 0.0},
        {"snapshots": 2},
        {"every": 0},
        {"energy": 0.0},
    ],
)
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fgo.probes.commutator(losses, **wrong)
