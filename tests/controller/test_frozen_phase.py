"""A phase that never ends is its base optimizer, bit for bit."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo
from tests.problems import mlp_batch, mlp_params, trees_equal

STEPS = 50
# As outside the tests (conftest.py): the quick generator of code rounds by how it fuses.
AS_USUAL = {
    "xla_cpu_use_fusion_emitters": True,
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
never = fgo.triggers.never


def frozen(transform=None, **kwargs):
    rates = {"warmup_steps": 0, "transform": transform, **kwargs}
    return fgo.phased(
        [fgo.acquisition(1e-2, **rates), fgo.reask(1e-2, transform=optax.scale_by_rms())],
        [fgo.triggers.stall("intrinsic_dimension") & never()],
        fgo.probes.gradient_stream(pairs=4),
    )


CASES = {
    "sgd_momentum": (lambda: frozen(optax.trace(0.9)), lambda: optax.sgd(1e-2, momentum=0.9)),
    "masked_adamw": (
        lambda: frozen(weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        lambda: optax.adamw(
            1e-2, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
        ),
    ),
    "target_acquisition": (
        lambda: fgo.target_acquisition(
            1e-2, 0, weight_decay=0.1, triggers={"acquisition": never()}
        ),
        lambda: optax.chain(
            fgo.scale_by_kronecker_fisher(),
            optax.add_decayed_weights(0.1),
            optax.scale_by_learning_rate(1e-2),
        ),
    ),
    "target_acquisition_from_adam": (
        lambda: fgo.target_acquisition(
            1e-2,
            0,
            weight_decay=0.1,
            # What never runs is quick to compile.
            transform={"acquisition": optax.scale_by_adam()}
            | dict.fromkeys(("reask", "execution"), optax.scale_by_rms()),
            triggers={"acquisition": never()},
        ),
        lambda: optax.adamw(1e-2, weight_decay=0.1),
    ),
}


def layer():
    """A matrix and a vector. With all optimizations each leaf takes seconds to compile."""
    return {"kernel": jax.random.normal(jax.random.key(0), (8, 8)) / 8**0.5, "bias": jnp.zeros(8)}


def loss_of(params, batch):
    logits = jnp.tanh(batch["x"] @ params["kernel"] + params["bias"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


@jax.jit
def gradient(params, number):
    return jax.grad(loss_of)(params, mlp_batch(number))


def train(tx):
    """Parameters and state after one scan. Its batches are drawn outside, to compile less."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(loss_of)(params, batch)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    params, batches = layer(), jax.jit(jax.vmap(mlp_batch))(jnp.arange(STEPS))
    run = jax.jit(lambda *whole: jax.lax.scan(step, *whole)[0], compiler_options=AS_USUAL)
    return run((params, jax.jit(tx.init)(params)), batches)


@pytest.mark.parametrize("case", ["sgd_momentum", "target_acquisition_from_adam"])
def test_equals_its_base_bit_for_bit_inside_one_scan(case):
    ours, base = (make() for make in CASES[case])
    params, state = train(ours)
    assert int(state.probe_state.evaluations) > 0, "the probe must have been on"
    assert trees_equal(params, train(base)[0])


# A compilation each, without what fuses across steps: one base of optax and one of ours.
@pytest.mark.parametrize("case", ["masked_adamw", "target_acquisition"])
def test_equals_its_base_bit_for_bit_step_by_step(case):
    ours, base = (make() for make in CASES[case])
    left = right = layer()
    left_state, right_state = jax.jit(ours.init)(left), jax.jit(base.init)(right)
    left_update, right_update = (
        jax.jit(tx.update, compiler_options=AS_USUAL) for tx in (ours, base)
    )
    for number in range(STEPS):
        grads = gradient(left, number)
        a, left_state = left_update(grads, left_state, left)
        b, right_state = right_update(grads, right_state, right)
        assert trees_equal(a, b)
        left, right = optax.apply_updates(left, a), optax.apply_updates(right, b)


def test_bfloat16_equals_the_base_at_the_same_float32_rate():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), mlp_params())
    grads = jax.tree.map(lambda p: (0.3 * p + 0.01).astype(p.dtype), params)
    ours = frozen()
    base = optax.scale_by_adam()
    update = jax.jit(ours.update)
    state, base_state = jax.jit(ours.init)(params), base.init(params)

    # Compiled apart: fused, XLA may keep the direction in f32 where bfloat16 is meant.
    direction_of = jax.jit(base.update)

    @jax.jit
    def scaled(direction):
        rate = jnp.float32(1e-2)
        return jax.tree.map(
            lambda d: (-rate * d.astype(jnp.float32)).astype(jnp.bfloat16), direction
        )

    for _ in range(10):
        updates, state = update(grads, state, params)
        direction, base_state = direction_of(grads, base_state)
        assert trees_equal(updates, scaled(direction))
