"""Phases where JAX computes with numbers of 64 bits."""

import jax
import jax.numpy as jnp
import optax

import fgo_jax as fgo


def test_it_runs_with_numbers_of_64_bits():
    def descend(progress):
        del progress
        return 1e-3

    plain = optax.identity()
    phases = [
        fgo.Phase("one", descend, plain, weight_decay=0.1, mask={"w": True}),
        fgo.Phase("two", descend, plain),
    ]
    with jax.enable_x64(True):
        tx = fgo.phased(phases, [fgo.triggers.after(2)])
        params = {"w": jnp.ones(2)}
        _, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert int(state.clock.total_step) == 1
