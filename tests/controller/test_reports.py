"""A validation is one report, however long the loop holds its number."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fgo_jax as fgo

PARAMS = {"w": jnp.ones(3)}
NAN = float("nan")


def reports(values, wrap=lambda tx: tx, grads=PARAMS, patience=3):
    """Whether early stopping has fired after each call of `update`."""
    plateau = fgo.triggers.plateau("validation", patience=patience)
    plateau = fgo.triggers.if_given(plateau, "validation", otherwise=0)
    tx = wrap(fgo.phased([fgo.acquisition(0.1, transform=optax.identity())], [plateau]))
    update, state, fired = jax.jit(tx.update), tx.init(PARAMS), []
    for value in values:
        extras = {} if value is None else {"validation_value": jnp.float32(value)}
        _, state = update(grads, state, PARAMS, **extras)
        fired.append(bool(fgo.should_stop(state)))
    return fired


def test_a_held_value_counts_once():
    assert not any(reports([1.0] * 20))
    # Four reports, each held for five steps: three after the best.
    assert reports([0.5] * 5 + [0.7] * 5 + [0.6] * 5 + [0.8] * 5) == [False] * 15 + [True] * 5


@pytest.mark.parametrize("gap", [NAN, None])
def test_an_equal_result_reported_again_counts(gap):
    # NaN, or no argument at all, means not measured.
    fired = reports([1.0, gap, 1.0, gap, gap, 1.0, gap, 1.0])
    assert fired == [False] * 7 + [True]


def test_a_restart_forgets_what_was_held():
    state = fgo.phased([fgo.acquisition(0.1)], []).init(PARAMS)
    assert jnp.isnan(fgo.restart(state).clock.reported)


def test_under_multi_steps_only_the_last_micro_step_reports_so_hold_it():
    def wrap(tx):
        return optax.MultiSteps(tx, 4).gradient_transformation()

    lost = [value for report in (0.5, 0.6, 0.7, 0.8) for value in (report, NAN, NAN, NAN)]
    assert not any(reports(lost, wrap))
    held = [value for report in (0.5, 0.6, 0.7, 0.8) for value in [report] * 4]
    assert reports(held, wrap) == [False] * 15 + [True]
