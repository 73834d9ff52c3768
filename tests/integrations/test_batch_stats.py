"""Batch statistics for averaged weights: what goes wrong with the old ones, and the mending."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fgo_jax as fgo
from fgo_jax.integrations.flax import (
    TrainState,
    nnx_recompute_batch_stats,
    recompute_batch_stats,
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for number in range(4):
            x = nn.Dense(32, name=f"dense{number}")(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm{number}")
            x = nn.relu(norm(x))
        return nn.Dense(3)(x)


def batches(seed, count):
    """Three classes in noise."""
    keys = jax.random.split(jax.random.key(seed), 2)
    centres = 0.5 * jax.random.normal(jax.random.key(99), (3, 32))
    labels = jax.random.randint(keys[0], (count, 32), 0, 3)
    return {"x": centres[labels] + jax.random.normal(keys[1], (count, 32, 32)), "y": labels}


def unstacked(data):
    return [jax.tree.map(lambda x: x[i], data) for i in range(len(data["y"]))]  # noqa: B023


def training_mode(variables, batch):
    return Net().apply(variables, batch["x"], True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def trained():
    """A run at a high rate, whose weights are noisy and whose average is not."""
    variables = Net().init(jax.random.key(0), jnp.zeros((2, 32)), False)
    tx = optax.chain(optax.sgd(3.0), fgo.average_weights(1.0))
    state = TrainState.create(apply_fn=None, tx=tx, **variables)

    def step(state, batch):
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = training_mode(variables, batch)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
            return losses.mean(), updated["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, value=value, batch_stats=stats), value

    return jax.jit(lambda s: jax.lax.scan(step, s, batches(1, 200)))(state)[0]


def loss_of(params, stats):
    data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches(2, 32))
    logits = Net().apply({"params": params, "batch_stats": stats}, data["x"], False)
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, data["y"]).mean())


def test_averaged_weights_need_statistics_of_their_own(trained):
    old = {"params": trained.eval_params, "batch_stats": trained.batch_stats}
    new = recompute_batch_stats(training_mode, old, unstacked(batches(3, 20)))
    raw = loss_of(trained.params, trained.batch_stats)
    stale, fresh = loss_of(trained.eval_params, trained.batch_stats), loss_of(old["params"], new)
    # With the statistics of the raw weights the average is worse than the raw weights are.
    assert stale > 1.3 * raw
    assert fresh < 0.95 * raw
    assert jax.tree.structure(new) == jax.tree.structure(trained.batch_stats)


def test_the_statistics_are_plain_means_over_the_batches(trained):
    variables = {"params": trained.params, "batch_stats": trained.batch_stats}
    data = unstacked(batches(4, 5))
    found = recompute_batch_stats(training_mode, variables, data)["norm0"]
    layer = trained.params["dense0"]
    seen = [batch["x"] @ layer["kernel"] + layer["bias"] for batch in data]
    for name, truth in {"mean": [x.mean(0) for x in seen], "var": [x.var(0) for x in seen]}.items():
        np.testing.assert_allclose(found[name], np.mean(truth, 0), rtol=1e-4, atol=1e-4)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(32, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


def test_an_nnx_model_gets_plain_means_too_and_nothing_else_changes():
    model, data = Nnx(nnx.Rngs(0)), unstacked(batches(4, 5))
    model.eval()
    before = nnx.to_flat_state(nnx.state(model))
    nnx_recompute_batch_stats(model, data, lambda model, batch: model(batch["x"]))
    seen = [model.dense(batch["x"]) for batch in data]
    truth = {"mean": [x.mean(0) for x in seen], "var": [x.var(0) for x in seen]}
    for name, values in truth.items():
        found = getattr(model.norm, name)[...]
        np.testing.assert_allclose(found, np.mean(values, 0), rtol=1e-4, atol=1e-4)
    assert (model.norm.momentum, model.norm.use_running_average) == (0.99, True)
    after = dict(nnx.to_flat_state(nnx.state(model)))
    for path, leaf in before:
        if not isinstance(leaf, nnx.BatchStat):
            assert bool(jnp.all(leaf.get_value() == after[path].get_value())), path


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nothing_stays_of_old_numbers_that_are_not_finite(bad):
    data, truth = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [5.0]])], {"mean": 3.5, "var": 0.5}
    old = {"mean": jnp.array([bad]), "var": jnp.array([bad])}
    layer = nn.BatchNorm(use_running_average=False, use_bias=False, use_scale=False)
    found = recompute_batch_stats(
        lambda variables, x: layer.apply(variables, x, mutable=["batch_stats"]),
        {"batch_stats": old},
        data,
    )
    assert {name: float(found[name][0]) for name in truth} == truth
    model = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    model.mean[...], model.var[...] = old["mean"], old["var"]
    nnx_recompute_batch_stats(model, data)
    assert {name: float(getattr(model, name)[0]) for name in truth} == truth


class Chosen(nnx.Module):
    """Its own argument goes before the module's flag; with `inner`, under a transform of nnx."""

    def __init__(self, rngs, inner=lambda norm, x, frozen: norm(x, use_running_average=frozen)):
        self.norm, self.frozen = nnx.BatchNorm(1, rngs=rngs), nnx.BatchNorm(1, rngs=rngs)
        self.inner = inner

    def __call__(self, x, train=False):
        return self.inner(self.norm, self.frozen(x, use_running_average=True), not train)


@nnx.jit(static_argnums=2)
def jitted(norm, x, frozen):
    return norm(x, use_running_average=frozen)


@pytest.mark.parametrize("inner", [{}, {"inner": jitted}])
def test_an_nnx_model_that_trains_by_an_argument_at_the_call(inner):
    model, x = Chosen(nnx.Rngs(0), **inner), jnp.array([[1.0], [3.0]])
    with pytest.raises(ValueError, match="call=lambda model, batch: model"):
        nnx_recompute_batch_stats(model, [x])
    for _ in range(2):  # the second time, the old numbers are those of the batch
        nnx_recompute_batch_stats(model, [x], lambda model, batch: model(batch, train=True))
        np.testing.assert_allclose(model.norm.mean[...], 2.0, rtol=1e-4)
        assert (float(model.frozen.mean[0]), float(model.frozen.var[0])) == (0.0, 1.0)


def test_mistakes_are_named(trained):
    variables = {"params": trained.params, "batch_stats": trained.batch_stats}
    data = unstacked(batches(4, 1))
    with pytest.raises(ValueError, match="batches is empty"):
        recompute_batch_stats(training_mode, variables, [])
    with pytest.raises(ValueError, match="pass train=True"):
        recompute_batch_stats(
            lambda v, b: Net().apply(v, b["x"], False, mutable=["batch_stats"]), variables, data
        )
    with pytest.raises(ValueError, match=r'mutable=\["batch_stats"\]'):
        recompute_batch_stats(lambda v, b: Net().apply(v, b["x"], False), variables, data)
    with pytest.raises(ValueError, match=r"has no flax\.nnx\.BatchNorm"):
        nnx_recompute_batch_stats(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), [jnp.ones((2, 2))])
    with pytest.raises(ValueError, match="batches is empty"):
        nnx_recompute_batch_stats(Nnx(nnx.Rngs(0)), [])
