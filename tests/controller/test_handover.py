"""Sizes across hand-overs: whose updates keep the size that they take over with, and how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.controller.trial import keeps_scale

after, never, force = fgo.triggers.after, fgo.triggers.never, fgo.force_phase
SHAPES = {"matrix": (4, 3), "vector": (5,)}
PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
HANDOVER = 10
ENDS = 20  # of a phase, which is half a hand-over and as much again


def times(factor, transform):
    return optax.chain(transform, optax.scale(factor))


TRANSFORMS = {
    "adam": optax.scale_by_adam,
    "adam again": lambda: optax.scale_by_adam(b1=0.8),
    "sgd": optax.identity,
    "short sgd": lambda: times(1e-3, optax.identity()),
    "long momentum": lambda: times(1e3, optax.trace(0.9)),
    "a natural gradient": lambda: fgo.scale_by_kronecker_fisher(centred=True, power=1.0),
}


def gradients(steps, size=0.03):
    """A mean gradient with noise around it, of another size in each tensor."""
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {
        name: size * 10.0**i * (1.0 + 0.5 * jax.random.normal(key, (steps, *shape)))
        for i, (key, (name, shape)) in enumerate(zip(keys, SHAPES.items(), strict=True))
    }


def phases_of(*transforms, rate=1e-3):
    phases = [
        fgo.Phase(str(i), lambda _: jnp.float32(rate), transform)
        for i, transform in enumerate(transforms)
    ]
    ends = [after(ENDS)] * (len(phases) - 1)
    return fgo.phased(phases, ends, handover_steps=HANDOVER)


def norms(tx, grads, state=None):
    """Each tensor's norm of the direction at each step, and the final state."""

    def step(state, grads):
        updates, state = tx.update(grads, state, PARAMS)
        rate = state.fgo_learning_rate
        return state, jax.tree.map(lambda u: jnp.linalg.norm(u) / rate, updates)

    run = jax.jit(lambda s: jax.lax.scan(step, s, grads))
    state, seen = run(tx.init(PARAMS) if state is None else state)
    return jax.tree.map(np.asarray, seen), state


@pytest.mark.parametrize(
    "names",
    [
        ("adam", "a natural gradient", "sgd"),
        ("adam", "long momentum", "adam again"),
        ("adam", "sgd", "long momentum"),
        ("sgd", "adam", "short sgd"),
    ],
    ids=" to ".join,
)
def test_the_old_size_stays_through_every_hand_over_and_after_it(names):
    # The rate is in the unit of the first transform, so its size is right in every phase.
    tx = phases_of(*(TRANSFORMS[name]() for name in names))
    seen, state = norms(tx, gradients(120))
    assert int(state.clock.driver) == 2
    for name, tensor in seen.items():
        right = np.median(tensor[5:ENDS])
        # A third is the noise of single gradients. Where the driver's graft was overwritten by
        # that of its successor, sizes doubled step by step, up to a millionfold.
        assert (tensor[5:] < 3 * right).all(), name
        assert (tensor[5:] > right / 3).all(), name


def test_the_next_transforms_graft_does_not_move_the_drivers():
    tx = phases_of(optax.scale_by_adam(), times(1e3, optax.trace(0.9)), optax.identity())
    grads = gradients(200)
    _, state = norms(tx, jax.tree.map(lambda g: g[: ENDS + HANDOVER + 1], grads))
    (before, _), filling = state.grafts, force(state, 2)
    _, filling = norms(tx, jax.tree.map(lambda g: g[:HANDOVER], grads), filling)
    assert 0 < int(filling.clock.handover_left) < HANDOVER
    jax.tree.map(np.testing.assert_array_equal, filling.grafts[0], before)
    assert np.isfinite(filling.grafts[1]).all()


def test_sizes_that_gradients_do_not_set_return_as_the_graft_fades():
    tx = phases_of(optax.scale_by_adam(), times(1e3, optax.scale_by_adam()))
    seen, _ = norms(tx, gradients(80))
    for tensor in seen.values():
        assert tensor[ENDS + HANDOVER + 1] < 3 * tensor[ENDS]
        assert tensor[-1] > 300 * tensor[ENDS]


@pytest.mark.parametrize("way", ["forced back", "restarted"])
def test_the_first_phases_transform_never_keeps_anothers_size(way):
    sgd = optax.identity()
    tx = phases_of(sgd, optax.scale_by_adam(), sgd)
    grads = gradients(4 * ENDS + 4 * HANDOVER)
    _, state = norms(tx, grads)
    state = force(state, 0) if way == "forced back" else fgo.restart(state)
    few = jax.tree.map(lambda g: g[:4], grads)
    seen, _ = norms(tx, few, state)
    for name, tensor in seen.items():
        own = np.linalg.norm(np.asarray(few[name]).reshape(4, -1), axis=1)
        np.testing.assert_allclose(tensor[1:], own[1:], rtol=1e-5)


def test_a_transform_in_charge_without_a_hand_over_has_its_own_size():
    sgd = optax.identity()
    tx = phases_of(optax.scale_by_adam(), sgd, optax.scale_by_rms())
    grads = gradients(4)
    # From the third phase back to the second one, which no hand-over has led to.
    state = tx.init(PARAMS)
    state = state._replace(clock=state.clock._replace(phase=jnp.int32(2), driver=jnp.int32(2)))
    seen, _ = norms(tx, grads, force(state, 1))
    own = np.linalg.norm(np.asarray(grads["vector"]), axis=1)
    np.testing.assert_allclose(seen["vector"][1:], own[1:], rtol=1e-5)


def test_a_tensor_that_wakes_after_the_hand_over_fits_the_others():
    grads = gradients(100)
    asleep = {**grads, "vector": grads["vector"].at[: ENDS + HANDOVER + 5].set(0.0)}
    tx = phases_of(optax.scale_by_adam(), optax.identity())
    seen, state = norms(tx, asleep)
    # Both tensors' gradients are multiplied by the same number.
    matrix, vector, whole = np.asarray(state.grafts[0])
    assert np.isnan(vector)
    np.testing.assert_allclose(matrix, whole, rtol=1e-5)
    woken = np.asarray(seen["vector"])[-20:] / np.linalg.norm(asleep["vector"][-20:], axis=1)
    np.testing.assert_allclose(woken, np.exp(matrix), rtol=1e-4)
    assert np.exp(matrix) > 3


@pytest.mark.parametrize("coming", ["a natural gradient", "sgd"])
def test_steps_without_a_gradient_do_not_count_in_a_tensors_size(coming):
    # As those of an idle expert. Its gradients are small, so the others' size is not its own.
    grads = gradients(ENDS + HANDOVER + 1)
    grads["matrix"] = 0.01 * grads["matrix"]
    idle = (jnp.arange(len(grads["matrix"])) % 2 == 0)[:, None, None]
    tx = phases_of(optax.scale_by_sign(), TRANSFORMS[coming]())
    found, whole = (
        np.asarray(norms(tx, {**grads, "matrix": matrix})[1].grafts[0])
        for matrix in (jnp.where(idle, 0.0, grads["matrix"]), grads["matrix"])
    )
    np.testing.assert_allclose(found[:2], whole[:2], atol=0.6)
    assert whole[0] - whole[1] > 6


def test_steps_without_an_update_do_not_count_in_the_size():
    # As in the burn-in of K-FAC: with zeros counted, the ratio would be their mean with it.
    def silent(updates, state, params=None):
        said = state >= ENDS + HANDOVER // 2
        return jax.tree.map(lambda u: jnp.where(said, u / 30, 0.0), updates), state + 1

    late = optax.GradientTransformation(lambda _: jnp.int32(ENDS), silent)
    tx = phases_of(optax.identity(), late)
    seen, _ = norms(tx, jax.tree.map(lambda g: jnp.ones_like(g), gradients(60)))
    for tensor in seen.values():
        np.testing.assert_allclose(tensor[ENDS + HANDOVER + 2 :], tensor[0], rtol=1e-5)


KEEPS = {
    "adam": (optax.scale_by_adam, True),
    "adam with a large eps": (lambda: optax.scale_by_adam(eps=1e-4), True),
    "a thousand times adam": (lambda: times(1e3, optax.scale_by_adam()), True),
    "rms": (optax.scale_by_rms, True),
    "lion": (optax.scale_by_lion, True),
    "muon": (optax.contrib.scale_by_muon, True),
    "noisy adam": (lambda: optax.chain(optax.add_noise(1.0, 0.5, 0), optax.scale_by_adam()), True),
    "kronecker": (fgo.scale_by_kronecker_fisher, True),
    "sgd": (optax.identity, False),
    "momentum": (lambda: optax.trace(0.9), False),
    "clipped momentum": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9)),
        False,
    ),
    "noisy sgd": (lambda: optax.add_noise(1.0, 0.5, 0), False),
    "a natural gradient": (lambda: fgo.scale_by_kronecker_fisher(centred=True), False),
    "what cannot be tried": (lambda: optax.masked(optax.identity(), {"w": True}), True),
}


@pytest.mark.parametrize("name", KEEPS)
def test_whether_updates_keep_their_size_is_declared_or_tried(name):
    make, expected = KEEPS[name]
    assert keeps_scale(make()) is expected


def test_it_is_tried_inside_jit_too():
    @jax.jit
    def tried(x):
        assert not keeps_scale(optax.trace(0.9))
        assert keeps_scale(optax.scale_by_adam())
        assert keeps_scale(optax.trace(x))  # a traced number cannot be tried
        return x

    tried(0.5)
