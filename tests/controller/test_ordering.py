"""The data dependency that orders reads before writes, seen in the compiled step."""

import functools

import jax

import fgo_jax as fgo
from fgo_jax.controller import smooth, update
from tests.hlo import copied_always
from tests.problems import mlp_batch, mlp_loss, mlp_params

PARAMS = mlp_params(width=256)


def copied():
    return copied_always(fgo.target_acquisition(1e-3), mlp_loss, PARAMS, mlp_batch(0))


ordered = functools.cache(copied)  # both tests read it


def test_no_step_copies_the_state_of_a_transform():
    # Four moments as large as the parameters, besides factors and bases, pass through every
    # step; XLA copied them all where one switch held them, or where a probe reads them. What
    # it does copy is one row of the sketch, 8 kB.
    moment = 4 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert ordered() < moment


def test_without_the_dependency_every_step_copies_states(monkeypatch):
    least = 100 * ordered()
    for module in (update, smooth):
        monkeypatch.setattr(module, "ordered_after", lambda flag, counter: flag)
    # 292 and 549,448 bytes when this was written. Should XLA learn to order the two by itself,
    # the helper can go.
    assert copied() > least
