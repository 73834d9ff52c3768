"""An update that compiles by itself hands on what plain optax hands on."""

import jax
import jax.numpy as jnp
import pytest

from fgo_jax.linalg.compiled import compiled_once


@pytest.mark.parametrize("inside", [False, True])
def test_flags_and_texts_can_be_branched_on_and_numbers_inside_a_jit(inside):
    traces = []

    @compiled_once
    def update(updates, state, params=None, *, flip=False, mode="same", batch=None, times=1):
        traces.append(flip)
        if (flip and mode == "double") or (batch is not None and batch["train"]):
            updates = 2 * updates
        for _ in range(times) if inside else ():
            updates = -updates
        return updates, state + times

    given = jnp.ones(2), jnp.zeros([])

    def call(**extras):
        step = jax.jit(lambda *args: update(*args, **extras)) if inside else update
        return [float(jnp.sum(x)) for x in step(*given, **({} if inside else extras))]

    sign = -1 if inside else 1
    assert call(flip=True, mode="double") == [4.0 * sign, 1.0]
    assert call(flip=False, mode="double") == [2.0 * sign, 1.0]
    assert call(flip=True, mode="same") == [2.0 * sign, 1.0]
    assert call(batch={"x": given[0], "train": True}) == [4.0 * sign, 1.0]
    traced = len(traces)
    for times in (2, 3):
        assert call(times=times) == [2.0 * (-1 if inside and times == 3 else 1), float(times)]
    # Outside, a number that counts the steps compiles nothing anew.
    assert len(traces) == traced + (2 if inside else 1)


def test_a_count_beyond_int32_is_an_argument_like_others():
    traces = []

    @compiled_once
    def update(updates, state, params=None, *, tokens, batch):
        traces.append(tokens)
        return updates, state + tokens

    for tokens in (5_000_000_000, 6_000_000_000):
        _, state = update(jnp.ones(2), jnp.zeros([]), tokens=tokens, batch={"seen": -tokens})
        assert float(state) == tokens
    assert len(traces) == 1


def test_one_and_true_are_different_arguments():
    doubled = compiled_once(lambda u, s, params=None, *, by: (u * 2 if by is True else u, s))
    assert [float(doubled(jnp.ones([]), (), by=by)[0]) for by in (True, 1, True)] == [2.0, 1.0, 2.0]
