"""`target_acquisition` from the outside: drop-in use and wrong use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import fgo_jax as fgo
from tests.problems import mlp, mlp_batch, mlp_gradient, mlp_params, train

fisher = fgo.curvature.ggn(lambda params, batch: mlp(params, batch["x"]))


def drop_in():
    return optax.chain(optax.clip_by_global_norm(1.0), fgo.target_acquisition(1e-2, 10))


def test_trains_under_flax_train_state_without_extra_arguments():
    model = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(3)])
    params = model.init(jax.random.key(0), jnp.zeros((1, 8)))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=drop_in())

    def loss(params, batch):
        logits = state.apply_fn({"params": params}, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def step(state, number):
        value, grads = jax.value_and_grad(loss)(state.params, mlp_batch(number))
        return state.apply_gradients(grads=grads), value

    state, losses = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(150)))(state)
    assert losses[-20:].mean() < 0.8 * losses[:5].mean()
    assert int(fgo.telemetry(state.opt_state)["total_step"]) == 150


def test_trains_under_nnx_optimizer_without_extra_arguments():
    model = nnx.Sequential(
        nnx.Linear(8, 16, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(16, 3, rngs=nnx.Rngs(1))
    )
    optimizer = nnx.Optimizer(model, drop_in(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        def loss(model):
            logits = model(batch["x"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer, mlp_batch(number))) for number in range(60)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_value_and_batch_are_used_when_given():
    tx, grads = fgo.target_acquisition(1e-2, 10, transform=optax.identity()), {"w": jnp.ones(3)}
    with_loss, without = jax.jit(
        lambda s: [tx.update(grads, s, grads, **given)[1] for given in ({"value": 2.0}, {})]
    )(tx.init(grads))
    assert jnp.isfinite(with_loss.signals["loss"][0])
    assert jnp.isnan(without.signals["loss"][0])
    conditions = with_loss.trigger_states["0_acquisition"]
    assert "not_loss_increasing" in conditions


def test_batch_feeds_a_probe_that_runs_the_model():
    t = fgo.triggers
    tx = fgo.target_acquisition(
        1e-2,
        10,
        transform=optax.identity(),
        probe=fgo.probes.hutchinson(fisher, every=10),
        triggers={
            "acquisition": t.stall("intrinsic_dimension"),
            "reask": t.stall("intrinsic_dimension"),
        },
    )
    state = train(tx, 25, extras=lambda value, batch, step: {"batch": batch})[1]
    assert float(state.signals["trace"][0]) > 0
    assert int(state.probe_state.evaluations) == 2


def test_the_average_is_evaluated_with_the_present_parameters():
    tx = optax.chain(
        fgo.target_acquisition(1e-2, 10, transform=optax.identity(), average_weights=0.5)
    )
    params = mlp_params()
    state = tx.init(params)
    update = jax.jit(tx.update)
    history = []
    for number in range(5):
        grads = mlp_gradient(params, number)
        history.append(params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    history.append(params)
    average = history[0]
    for steps, p in enumerate(history[1:], 1):
        average = jax.tree.map(lambda a, b: a + (b - a) / (0.5 * steps + 1), average, p)  # noqa: B023
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        fgo.eval_params(state, params),
        average,
    )
    with pytest.raises(ValueError, match="holds 0 averages"):
        fgo.eval_params(optax.adam(1e-3).init(params), params)


def two_phases(**kwargs):
    return fgo.phased([fgo.acquisition(1e-3), fgo.reask(1e-3)], [fgo.triggers.never()], **kwargs)


WRONG = {
    "negative rate": (lambda: fgo.target_acquisition(-1e-3), "learning_rate must be a finite"),
    "no phases": (lambda: fgo.phased([], []), "at least one phase"),
    "not a phase": (lambda: fgo.phased([optax.adam(1e-3)], []), r"made by fgo\.acquisition"),
    "too few triggers": (
        lambda: fgo.phased([fgo.acquisition(1e-3), fgo.reask(1e-3)], []),
        "2 phases need 1 triggers",
    ),
    "unknown signal": (
        lambda: fgo.phased(
            [fgo.acquisition(1e-3)], [fgo.triggers.stall("sharpness")], fgo.probes.gradient_stream()
        ),
        r"reads \['sharpness'\], which nothing measures",
    ),
    "no probe": (
        lambda: fgo.phased([fgo.acquisition(1e-3)], [fgo.triggers.stall("trace")]),
        "pass a probe=",
    ),
    "cut": (lambda: fgo.reask(1e-3, cut=1.0), r"cut must lie in \[0, 1\)"),
    "decay": (
        lambda: fgo.target_acquisition(1e-3, decay="step"),
        r"must come from fgo\.decays",
    ),
    "warm-up": (lambda: fgo.target_acquisition(1e-3, -5), "warmup_steps must be an integer"),
    "transform": (
        lambda: fgo.acquisition(1e-3, transform="adam"),
        r"must be an optax\.GradientTransformation",
    ),
    "deadlines alone": (
        lambda: two_phases(deadlines=(0.5,)),
        "pass total_steps=",
    ),
    "deadlines order": (
        lambda: fgo.phased(
            [fgo.acquisition(1e-3), fgo.reask(1e-3), fgo.execution(1e-3)],
            [fgo.triggers.never(), fgo.triggers.never()],
            total_steps=100,
            deadlines=(0.5, 0.2),
        ),
        "in rising order",
    ),
    "execution alone": (
        lambda: fgo.phased([fgo.execution(1e-3)], []),
        r"as in fgo\.decays\.cosine\(1000\)",
    ),
    "trigger of no phase": (
        lambda: fgo.target_acquisition(1e-3, triggers={"re-ask": fgo.triggers.never()}),
        "triggers must be a dict with keys among acquisition, reask, execution",
    ),
    "transform of no phase": (
        lambda: fgo.target_acquisition(1e-3, transform={"refinement": optax.scale_by_adam()}),
        r"transform must be .*a dict with keys among .*, got \['refinement'\]",
    ),
    "transform that is not called": (
        lambda: fgo.target_acquisition(1e-3, transform=optax.scale_by_adam),
        r"call it, as in optax.scale_by_adam\(\)\) or a dict .*, got function",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configuration_says_what_to_do(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()


def update_once(tx, **extra):
    params = mlp_params()
    return jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params, **extra)


def lanczos_protocol(**kwargs):
    return fgo.target_acquisition(
        1e-2,
        transform=optax.identity(),
        probe=fgo.probes.lanczos(fisher, **kwargs),
        triggers={
            "acquisition": fgo.triggers.stall("trace"),
            "reask": fgo.triggers.stall("trace"),
        },
    )


def test_a_probe_without_its_batch_names_it():
    with pytest.raises(TypeError, match=r"call update\(grads, state, params, batch=batch\)"):
        update_once(lanczos_protocol())


def test_a_batch_of_another_size_than_the_probes():
    with pytest.raises(ValueError, match="batch_size"):
        update_once(lanczos_protocol(batch_size=64), batch=mlp_batch(0, size=32))


def test_a_probe_under_masked_asks_for_the_whole_tree():
    params = mlp_params()
    mask = {"hidden": {"kernel": True, "bias": False}, "out": {"kernel": True}}
    tx = optax.masked(lanczos_protocol(), mask)
    with pytest.raises(TypeError, match="probe_params=params"):
        update_once(tx, batch=mlp_batch(0))
    update_once(tx, batch=mlp_batch(0), probe_params=params)


def test_a_trigger_on_the_loss_asks_for_value():
    tx = fgo.target_acquisition(1e-2, triggers={"acquisition": fgo.triggers.decreasing("loss")})
    with pytest.raises(TypeError, match="value="):
        update_once(tx)


def test_inject_hyperparams_schedules_and_overrides():
    make = optax.inject_hyperparams(fgo.target_acquisition, static_args=fgo.STATIC_ARGS)
    sgd = optax.identity()
    tx = make(
        learning_rate=optax.linear_schedule(0.1, 0.2, 10), warmup_steps=0, slow_share=0.4,
        transform=sgd,
    )  # fmt: skip
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    _, state = jax.jit(tx.update)(params, state, params)
    rate = fgo.telemetry(state)["learning_rate"]
    np.testing.assert_allclose(rate, 0.1, rtol=1e-6)
    constant = make(learning_rate=0.1, warmup_steps=0, transform=sgd)
    state = constant.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    _, state = jax.jit(constant.update)(params, state, params)
    np.testing.assert_allclose(fgo.telemetry(state)["learning_rate"], 0.5, rtol=1e-6)


def test_inject_hyperparams_keeps_the_rate_in_float32_beside_bfloat16_parameters():
    make = optax.inject_hyperparams(
        fgo.target_acquisition, static_args=fgo.STATIC_ARGS, hyperparam_dtype=jnp.float32
    )
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = make(learning_rate=1.2345e-3, warmup_steps=0, transform=optax.identity())
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_allclose(fgo.telemetry(state)["learning_rate"], 1.2345e-3, rtol=1e-6)
    assert updates["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(("arguments", "ratio"), [({}, 1.0), ({"average_weights": 0.1}, 3.0)])
@pytest.mark.parametrize("injected", [False, True])
def test_length_of_the_decay(arguments, ratio, injected):
    make = fgo.target_acquisition
    if injected:
        make = optax.inject_hyperparams(make, static_args=fgo.STATIC_ARGS)
    always = fgo.triggers.after(0)
    tx = make(
        learning_rate=0.1,
        warmup_steps=20,
        handover_steps=20,
        transform=optax.identity(),
        triggers={"acquisition": always, "reask": always},
        decay=fgo.decays.hyperbolic(ratio=ratio),
        **arguments,
    )
    params = {"w": jnp.ones(3)}

    def step(state, _):
        return tx.update(params, state, params)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, length=200))(tx.init(params))
    seen = fgo.telemetry(state)
    began = float(seen["started/execution"])
    assert 40 <= began < 60
    wanted = 0.1 / (1 + (199 - began) / (ratio * began))
    np.testing.assert_allclose(seen["learning_rate"], wanted, rtol=1e-5)


def test_the_default_end_of_re_ask_looks_at_the_agreement_alone():
    assert set(fgo.triggers.defaults()["reask"].signals) == {"agreement"}


def test_both_momenta_and_the_average_have_one_dtype():
    half = fgo.scale_by_kronecker_fisher(momentum_dtype=jnp.bfloat16)
    for transform in (half, fgo.precondition.chain(optax.clip(1.0), half)):
        tx = fgo.target_acquisition(1e-3, transform=transform, average_weights=0.1)
        state = jax.eval_shape(tx.init, {"w": jnp.ones((2, 3))})
        assert state.slow.mean["w"].dtype == jnp.bfloat16
        assert state.average.average["w"].dtype == jnp.bfloat16
    state = jax.eval_shape(fgo.target_acquisition(1e-3).init, {"w": jnp.ones((2, 3))})
    assert state.slow.mean["w"].dtype == jnp.float32
