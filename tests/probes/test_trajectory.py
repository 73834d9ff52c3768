"""The path of the parameters: known paths, a random walk, and principal components by SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.probes import path
from fgo_jax.probes.probe import ProbeInputs

COUNT = 32
GROUPS = {"walk": "walk", "line": "line", "circle": "circle"}


def read_along(probe, positions, steps):
    """What the probe reads after each snapshot of a path, [snapshots, ...] for each leaf."""

    def step(state, now):
        params, number = now
        inputs = ProbeInputs(None, None, params, None, jax.random.key(3), number)
        state = jax.lax.cond(
            probe.due(state, number), probe.measure, lambda _, old: old, inputs, state
        )
        return state, (state.evaluations, probe.read(state))

    start = probe.init(jax.tree.map(lambda x: x[0], positions))
    scan = jax.jit(lambda state, *over: jax.lax.scan(step, state, over))
    return jax.device_get(scan(start, positions, jnp.asarray(steps)))


def paths(count):
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * np.arange(count)[:, None] / COUNT
    plane = np.linalg.qr(rng.standard_normal((300, 2)))[0].T
    return {
        "walk": np.cumsum(rng.standard_normal((count, 60, 100)), 0).astype("f4"),
        "line": (5.0 + np.arange(count)[:, None] * rng.standard_normal(300)).astype("f4"),
        "circle": np.hstack([np.cos(angle), np.sin(angle)]).astype("f4") @ plane.astype("f4"),
    }


def principal(positions):
    """Shares of the variance by component."""
    rows = positions.reshape(len(positions), -1).astype("f8")
    variances = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    return variances / variances.sum()


@pytest.fixture(scope="module")
def even():
    probe = fgo.probes.trajectory(snapshots=COUNT, every=10, groups=GROUPS)
    positions = paths(COUNT + 8)
    return positions, *read_along(probe, positions, 10 * np.arange(COUNT + 8))


def test_nothing_is_known_until_the_ring_is_full(even):
    _, state, (evaluations, told) = even
    np.testing.assert_array_equal(evaluations, np.maximum(np.arange(1, COUNT + 9) - COUNT + 1, 0))
    assert np.isnan(told["path_dimension"].value[: COUNT - 1]).all()
    assert np.isfinite(told["path_dimension"].value[COUNT - 1 :]).all()
    # The ring holds the last ones.
    np.testing.assert_array_equal(np.sort(state.path.times), 10 * np.arange(8, COUNT + 8))


def test_the_random_walk_beside_it_has_its_closed_form(even):
    told = even[2][1]
    exact = 1 / np.sin(np.pi * np.arange(1, COUNT) / (2 * COUNT)) ** 2
    share = exact / exact.sum()
    np.testing.assert_allclose(told["walk_top_share"].value[-1], share[0], rtol=1e-4)
    np.testing.assert_allclose(told["walk_dimension"].value[-1], 1 / (share**2).sum(), rtol=1e-4)
    assert told["walk_rank"].value[-1] == 6
    # The limit of many snapshots is 6/pi^2, 5/2 and 6.
    assert share[0] == pytest.approx(6 / np.pi**2, rel=2e-3)
    assert 1 / (share**2).sum() == pytest.approx(2.5, rel=5e-3)


def test_a_simulated_walk_reads_as_one_and_known_paths_as_they_are(even):
    positions, _, (_, told) = even
    last = {name: estimate.value[-1] for name, estimate in told.items()}
    for name, dimension, rank in (("line", 1, 1), ("circle", 2, 2)):
        assert last[f"path_dimension/{name}"] == pytest.approx(dimension, rel=0.02)
        assert last[f"path_rank/{name}"] == rank
    # Six thousand parameters know the walk's numbers within a few per cent.
    assert last["path_dimension/walk"] == pytest.approx(last["walk_dimension"], rel=0.1)
    assert last["path_top_share/walk"] == pytest.approx(last["walk_top_share"], rel=0.06)
    assert last["path_rank/walk"] in (5, 6, 7)
    whole = np.concatenate([positions[n].reshape(COUNT + 8, -1) for n in sorted(positions)], 1)
    for part, suffix in ((whole, ""), (positions["walk"], "/walk")):
        share = principal(part[8:])
        assert last[f"path_top_share{suffix}"] == pytest.approx(share[0], rel=0.02)
        assert last[f"path_dimension{suffix}"] == pytest.approx(1 / (share**2).sum(), rel=0.05)


def test_uneven_snapshots_are_compared_with_a_walk_seen_at_the_same_steps():
    steps = np.unique(np.geomspace(1, 900, 24).astype(int))
    rng = np.random.default_rng(2)
    walk = np.cumsum(rng.standard_normal((901, 3000)), 0)[steps].astype("f4")
    gram = np.minimum(steps[:, None], steps)
    centre = np.eye(len(steps)) - 1 / len(steps)
    exact = np.linalg.eigvalsh(centre @ gram @ centre)
    found = path.random_walk_gram(jnp.asarray(steps))
    values = np.linalg.eigvalsh(found)
    np.testing.assert_allclose(values / values.sum(), exact / exact.sum(), atol=1e-6)
    # Most of its variance is in the last, long steps: an even walk has 0.61 here.
    assert principal(walk)[0] == pytest.approx(exact[-1] / exact.sum(), rel=0.1)


def test_the_ring_begins_anew_with_training():
    probe = fgo.probes.trajectory(snapshots=4, width=64, every=5)
    positions = {"w": np.random.default_rng(0).standard_normal((10, 8)).astype("f4")}
    steps = np.array([0, 5, 10, 15, 20, 0, 5, 10, 15, 20])
    # A restart keeps the probe's state; the first step counts from zero again.
    state, (evaluations, _) = read_along(probe, positions, steps)
    np.testing.assert_array_equal(np.diff(evaluations), [0, 0, 1, 1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(np.sort(state.path.times), [5, 10, 15, 20])


def test_a_trigger_reads_it_inside_a_compiled_run():
    plain = optax.identity()
    tx = fgo.phased(
        [fgo.acquisition(0.1, transform=plain), fgo.execution(0.1, 0.0, transform=plain)],
        [fgo.triggers.below("path_dimension", 1.01)],
        fgo.probes.trajectory(snapshots=4, width=64, every=1),
    )

    def step(carry, number):
        params, state = carry
        # At first round a circle of four steps, then straight on.
        turn = jnp.float32(0.5 * jnp.pi) * jnp.minimum(number, 12)
        grads = jnp.stack([jnp.cos(turn), jnp.sin(turn)])
        updates, state = tx.update(grads, state, params)
        return (params + updates, state), state.clock.phase

    start = jnp.zeros(2)
    scan = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(24)))
    (_, state), phases = scan((start, tx.init(start)))
    # Those before steps 12 to 15 are the first four on a line; two measurements have to agree.
    assert np.argmax(phases) == 16
    assert fgo.telemetry(state)["path_rank"] == 1


@pytest.mark.parametrize(
    "wrong", [{"snapshots": 3}, {"width": 0}, {"every": 0}, {"growth": 0.0}, {"energy": 0.0}]
)
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fgo.probes.trajectory(**wrong)
