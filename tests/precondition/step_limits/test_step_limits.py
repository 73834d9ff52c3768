"""clip_by_softmax_radius and scale_by_friction_limit against float64, and what must not break."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo
from fgo_jax.precondition import clip_by_softmax_radius, scale_by_friction_limit

EVERY, EXAMPLES, RADIUS, DAMPING = 4, 3, 0.3, 0.05
STEPS = 3 * EVERY + 3
JUMPS = {6: 1000.0, 9: 300.0}  # neither is a step with a measurement


def predict(params, batch):
    return jnp.tanh(batch["x"] @ params["w"]) @ params["v"] + params["b"]


def problem(seed=0):
    """Parameters and batches as they change, gradients, and updates with two sudden jumps."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (3, 4), "v": (4, 5), "b": (5,)}

    def tree(size):
        return {k: size * rng.normal(size=s) for k, s in shapes.items()}

    for t in range(STEPS):
        grad = tree(1.0)
        size = 0.03 * np.exp(rng.normal()) * JUMPS.get(t, 1.0)
        update = {k: size * (0.3 * z - grad[k]) for k, z in tree(1.0).items()}
        yield tree(1.0), {"x": rng.normal(size=(8, 3))}, grad, update


def inner(a, b):
    return sum(np.sum(a[k] * b[k]) for k in a)


def along(params, x, step):
    """Outputs and their derivative along a step, written out for the network above."""
    hidden = np.tanh(x @ params["w"])
    slope = (1 - hidden**2) * (x @ step["w"])
    return hidden @ params["v"] + params["b"], (
        slope @ params["v"] + hidden @ step["v"] + step["b"]
    )


def reference(limits):
    """Factors and measurements of every step, float64."""
    measured = {}
    for t, (params, batch, grad, update) in enumerate(problem()):
        norm = np.sqrt(inner(update, update))
        if t % EVERY == 0:
            unit = {k: p / norm for k, p in update.items()}
            z, a = along(params, batch["x"][:EXAMPLES], unit)
            measured["radius"] = np.max(a.max(axis=1) - a.min(axis=1))
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            variance = np.sum(p * a**2, axis=1) - np.sum(p * a, axis=1) ** 2
            measured["friction"] = np.mean(variance)
        allowed = {
            "radius": RADIUS * np.pi / (measured["radius"] * norm),
            "friction": -inner(grad, update) / ((measured["friction"] + DAMPING) * norm**2),
        }
        yield np.clip(min(allowed[name] for name in limits), 0.0, 1.0), dict(measured)


CADENCE = {"every": EVERY, "examples": EXAMPLES}
TRANSFORMS = {
    ("radius",): clip_by_softmax_radius(predict, RADIUS, **CADENCE),
    ("friction",): scale_by_friction_limit(predict, damping=DAMPING, **CADENCE),
    ("friction", "radius"): scale_by_friction_limit(
        predict, damping=DAMPING, radius=RADIUS, **CADENCE
    ),
}


def run(tx, seed=0):
    state, update = None, jax.jit(tx.update)
    for params, batch, grad, proposed in problem(seed):
        trees = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, batch, grad, proposed))
        params, batch, grad, proposed = trees
        state = tx.init(params) if state is None else state
        new, state = update(proposed, state, params, batch=batch, grad=grad)
        yield proposed, new, state


@pytest.mark.parametrize("limits", TRANSFORMS, ids="+".join)
def test_equals_a_float64_reference_over_three_cadences(limits):
    factors = []
    for t, ((old, new, state), (factor, measured)) in enumerate(
        zip(run(TRANSFORMS[limits]), reference(limits), strict=True)
    ):
        # float32 through tanh and sums of a few dozen products.
        np.testing.assert_allclose(state.shrinkage, factor, rtol=1e-4, err_msg=str(t))
        np.testing.assert_allclose(
            state.along_unit_step, [measured[name] for name in limits], rtol=1e-4
        )
        assert int(state.measurements) == t // EVERY + 1
        jax.tree.map(
            lambda a, b, f=factor: np.testing.assert_allclose(a, f * b, rtol=2e-4), new, old
        )
        factors.append(factor)
    # The cases that the reference is for: both jumps at the very step, and steps left alone.
    assert all(factors[t] < 0.5 for t in JUMPS)
    assert factors.count(1.0) >= 3


def test_the_logits_move_apart_by_no_more_than_the_radius():
    """Where it measures, to first order, and whatever the length of the update."""
    w, batch = jnp.zeros((3, 4)), jax.random.normal(jax.random.key(0), (8, 3))
    tx = clip_by_softmax_radius(lambda w, x: x @ w, 1.0, examples=8)
    for length in (1e-6, 1.0, 1e6, 1e15):
        proposed = length * jax.random.normal(jax.random.key(1), (3, 4))
        for sign in (1.0, -1.0):
            new, _ = tx.update(sign * proposed, tx.init(w), w, batch=batch)
            moved = jnp.max(jnp.ptp(batch @ new, axis=1))
            free = jnp.max(jnp.ptp(batch @ proposed, axis=1))
            np.testing.assert_allclose(moved, min(float(free), np.pi), rtol=1e-5)


def test_the_friction_limited_step_is_the_minimum_of_a_quadratic_along_it():
    """Least squares: the model is the loss itself."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, y, w = (
        jax.random.normal(k, s) for k, s in zip(keys, [(8, 3), (8, 2), (3, 2)], strict=False)
    )

    def loss(w):
        return 0.5 * jnp.mean(jnp.sum(jnp.square(x @ w - y), axis=-1))

    tx = scale_by_friction_limit(lambda w, x: x @ w, "squared_error", damping=0.0, examples=8)
    grad = jax.grad(loss)(w)
    proposed = -10.0 * (grad + 0.3 * jax.random.normal(keys[3], w.shape))
    new, state = tx.update(proposed, tx.init(w), w, batch=x, grad=grad)
    assert float(state.shrinkage) < 0.5
    at_end = jnp.vdot(jax.grad(loss)(w + new), proposed)
    np.testing.assert_allclose(at_end / jnp.vdot(grad, proposed), 0.0, atol=1e-5)

    short, _ = tx.update(-1e-3 * grad, tx.init(w), w, batch=x, grad=grad)
    np.testing.assert_array_equal(short, -1e-3 * grad)
    uphill, _ = tx.update(1e-3 * grad, tx.init(w), w, batch=x, grad=grad)
    np.testing.assert_array_equal(uphill, 0.0)


MAKERS = {
    "radius": clip_by_softmax_radius,
    "friction": functools.partial(scale_by_friction_limit, radius=0.5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_zero_updates_are_not_measured_and_made_up_for(make):
    params, batch = {"w": jnp.eye(2), "empty": jnp.zeros((0, 3))}, jnp.eye(2)
    tx = make(lambda p, x: x @ p["w"], every=3)
    grad = {"w": jnp.ones((2, 2)).at[0, 0].set(-1.0), "empty": jnp.zeros((0, 3))}
    zero = optax.tree.zeros_like(params)
    state = tx.init(params)
    for factor, count in ((0.0, 0), (0.0, 0), (-1e4, 1), (0.0, 1), (-1e4, 1)):
        proposed = optax.tree.scale(factor, grad)
        new, state = tx.update(proposed, state, params, batch=batch, grad=grad)
        assert int(state.measurements) == count
        assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves((new, state)))
        assert (float(state.shrinkage) < 1e-2) == bool(factor)
    new, _ = tx.update(zero, state, params, batch=batch, grad=zero)
    jax.tree.map(np.testing.assert_array_equal, new, zero)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("number", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_leaf_that_is_not_finite_takes_no_part(make, number):
    params = {"w": jnp.eye(2), "bad": jnp.zeros(2)}
    tx = make(lambda p, x: x @ p["w"] + p["bad"], every=1)
    grad = {"w": jnp.array([[-1.0, 1.0], [1.0, 1.0]]), "bad": jnp.array([number, 1.0])}
    absent = {**grad, "bad": jnp.zeros(2)}
    ends = []
    for g in (grad, absent):
        state = tx.init(params)
        proposed = optax.tree.scale(-100.0, g)
        ends.append(tx.update(proposed, state, params, batch=jnp.eye(2), grad=g))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    np.testing.assert_array_equal(ends[0][0]["bad"], 0.0)
    assert 0.0 < float(ends[0][1].shrinkage) < 1.0


def test_an_update_beyond_float32_is_no_step_and_no_measurement():
    params = jnp.eye(2)
    tx = clip_by_softmax_radius(lambda p, x: x @ p, every=1)
    new, state = tx.update(jnp.full((2, 2), 1e30), tx.init(params), params, batch=jnp.eye(2))
    np.testing.assert_array_equal(new, 0.0)
    assert int(state.measurements) == 0


def test_outputs_that_are_not_finite_leave_the_last_measurement():
    params, step = jnp.eye(2), jnp.array([[1.0, -1.0], [0.0, 0.0]])
    tx = clip_by_softmax_radius(lambda p, x: x @ p / x[:, :1], every=1)
    # Nothing is known yet: the step is left alone.
    free, state = tx.update(100 * step, tx.init(params), params, batch=jnp.zeros((1, 2)))
    np.testing.assert_array_equal(free, 100 * step)
    _, state = tx.update(step, state, params, batch=jnp.ones((1, 2)))
    new, state = tx.update(100 * step, state, params, batch=jnp.zeros((1, 2)))
    assert int(state.measurements) == 1
    np.testing.assert_allclose(new, np.pi / 4 * step, rtol=1e-6)


def test_both_limits_share_one_jvp_in_one_conditional():
    calls = []

    def counted(params, x):
        calls.append(jnp.shape(x))
        return x @ params

    tx = scale_by_friction_limit(counted, radius=0.5)
    params, batch = jnp.eye(2), jnp.ones((32, 2))
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params, batch=batch, grad=params)
    assert calls == [(4, 2)]  # an eighth of the batch
    conditionals = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "cond"]
    # The other one looks for the bad leaf, where there is one.
    assert sum("dot_general" in str(eqn) for eqn in conditionals) == 1
    assert "callback" not in str(jaxpr)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_types_stay(make, dtype):
    params = {"w": jnp.eye(2, dtype=dtype), "none": None}
    tx = make(lambda p, x: x @ p["w"])
    state = tx.init(params)
    abstract = tx.init(jax.eval_shape(lambda: params))
    jax.tree.map(np.testing.assert_array_equal, abstract, state)
    new, after = jax.jit(tx.update)(
        params, state, params, batch=jnp.eye(2, dtype=dtype), grad=params
    )
    assert new["w"].dtype == dtype
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type),
        state,
        after,
    )
    assert all(jax.tree.leaves(same))


def test_what_is_missing_is_named():
    params, batch = jnp.eye(2), jnp.eye(2)
    for make in MAKERS.values():
        tx = make(lambda p, x: x @ p)
        state = tx.init(params)
        with pytest.raises(TypeError, match=r"batch=, which is missing: call update\(grads"):
            tx.update(params, state, params, grad=params)
        with pytest.raises(TypeError, match="needs all of its parameters"):
            tx.update(params, state, batch=batch, grad=params)
        masked = {"w": params, "other": optax.MaskedNode()}
        with pytest.raises(TypeError, match=r"behind optax\.masked"):
            tx.update(masked, state, masked, batch=batch, grad=masked)
    with pytest.raises(TypeError, match="grad=, which is missing"):
        tx.update(params, state, params, batch=batch)


@pytest.mark.parametrize("outputs", [lambda z: z[:, 0], lambda z: z[:, :1], lambda z: (z, z)])
def test_outputs_that_are_no_logits(outputs):
    params = jnp.eye(2)
    for make, match in (
        (clip_by_softmax_radius, "needs logits of shape"),
        (scale_by_friction_limit, "softmax_cross_entropy (takes outputs of shape|over 1 class)"),
    ):
        tx = make(lambda p, x: outputs(x @ p))
        with pytest.raises(ValueError, match=match):
            tx.update(params, tx.init(params), params, batch=jnp.eye(2), grad=params)


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (clip_by_softmax_radius, {"radius": 0.0}, "radius must be a finite number > 0"),
        (clip_by_softmax_radius, {"every": 0}, "every must be an integer >= 1"),
        (clip_by_softmax_radius, {"examples": 0}, "examples must be an integer >= 1"),
        (scale_by_friction_limit, {"damping": -1.0}, "damping must be a finite number >= 0"),
        (scale_by_friction_limit, {"radius": -1.0}, "radius must be a finite number > 0"),
        (scale_by_friction_limit, {"loss": "hinge"}, "loss must be one of"),
    ],
)
def test_wrong_arguments(make, arguments, match):
    with pytest.raises(ValueError, match=match):
        make(predict, **arguments)
    with pytest.raises(ValueError, match="predict_fn must be a function"):
        make("model")
    with pytest.raises(ValueError, match="predict_fn must be the model"):
        make(fgo.curvature.ggn(predict))


@pytest.mark.parametrize("make", [clip_by_softmax_radius, scale_by_friction_limit])
def test_a_leaf_of_integers_does_not_move(make):
    params = {"w": jnp.eye(2), "n": jnp.int32(3)}
    tx = make(lambda p, x: x @ p["w"])
    grads, updates = ({"w": sign * jnp.eye(2), "n": jnp.int32(0)} for sign in (1, -1))
    found, _ = tx.update(updates, tx.init(params), params, batch=jnp.eye(2), grad=grads)
    assert int(found["n"]) == 0
    assert -1 <= float(found["w"][0, 0]) < 0


def test_a_batch_that_is_too_small():
    params = jnp.eye(2)
    tx = clip_by_softmax_radius(lambda p, x: x @ p, examples=3)
    with pytest.raises(ValueError, match="reads 3 examples but batch has 2"):
        tx.update(params, tx.init(params), params, batch=jnp.eye(2))
