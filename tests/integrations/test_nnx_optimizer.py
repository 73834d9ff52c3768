"""`nnx.Optimizer` hands extra arguments on, to optimizers and to probes that run the model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fgo_jax as fgo
from fgo_jax.integrations.flax import nnx_predict_fn

X = jax.random.normal(jax.random.key(0), (16, 3))
BATCH = {"x": X, "y": jnp.argmax(X[:, :2], -1)}


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def test_value_batch_and_validation_value_arrive():
    """With a probe that runs the model on the batch, in the same order of steps as pure optax."""
    model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    model.eval()
    predict = nnx_predict_fn(model, lambda model, batch: model(batch["x"]))
    probe = fgo.probes.hutchinson(fgo.curvature.ggn(predict), num_samples=2, every=2)
    phases = [fgo.acquisition(0.1, 0, transform=optax.identity())]
    tx = fgo.phased(phases, [fgo.triggers.plateau("validation", patience=2)], probe)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch, validation):
        value, grads = nnx.value_and_grad(loss)(model, batch)
        optimizer.update(model, grads, value=value, batch=batch, validation_value=validation)
        return value

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    state, params = tx.init(nnx.as_pure(params)), nnx.as_pure(params)

    @jax.jit
    def pure(params, state, validation):
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graph, p, rest), BATCH))(params)
        extras = {"value": value, "batch": BATCH, "validation_value": validation}
        updates, state = tx.update(grads, state, params, **extras)
        return optax.apply_updates(params, updates), state

    for validation in jnp.float32([1.0, 2.0, 3.0]):
        value = step(model, optimizer, BATCH, validation)
        params, state = pure(params, state, validation)
    told, expected = fgo.telemetry(optimizer.opt_state), fgo.telemetry(state)
    assert float(told["loss"]) == float(value)
    assert float(told["trace"]) > 0
    assert bool(fgo.should_stop(optimizer.opt_state))
    for name in expected:
        np.testing.assert_allclose(told[name], expected[name], rtol=1e-4, err_msg=name)


def test_mistakes_in_extra_arguments_are_named():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = fgo.phased([fgo.acquisition(0.1)], [fgo.triggers.decreasing("loss")])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx.grad(loss)(model, BATCH)
    with pytest.raises(TypeError, match="did you mean value="):
        optimizer.update(model, grads, loss=1.0)
    with pytest.raises(TypeError, match="value="):
        optimizer.update(model, grads)


@pytest.mark.slow
def test_functions_reach_other_members_of_a_chain():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(model)
    search = optax.scale_by_backtracking_linesearch(5)
    plain = fgo.phased([fgo.acquisition(0.1, 0, transform=optax.identity())], [])
    optimizer = nnx.Optimizer(model, optax.chain(plain, search), wrt=nnx.Param)

    def value_fn(params):
        return loss(nnx.merge(graph, params), BATCH)

    value, grads = nnx.value_and_grad(loss)(model, BATCH)
    pure = nnx.as_pure(grads)
    optimizer.update(model, grads, value=value, grad=pure, value_fn=value_fn)
    assert float(loss(model, BATCH)) < float(value)


def test_an_optimizer_is_saved_and_restored_by_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = fgo.phased([fgo.acquisition(0.1, 0)], [], average_weights=0.5)

    def made():
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    model, optimizer = made()
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model, BATCH)))
    step(model, optimizer)
    other = made()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", nnx.as_pure(nnx.state((model, optimizer))))
        checkpointer.wait_until_finished()
        like = nnx.as_pure(nnx.state(other))
        nnx.update(other, checkpointer.restore(tmp_path / "run", like))
    step(model, optimizer)
    step(*other)
    assert int(fgo.telemetry(other[1].opt_state)["total_step"]) == 2
    ours, theirs = nnx.as_pure(nnx.state(other)), nnx.as_pure(nnx.state((model, optimizer)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
