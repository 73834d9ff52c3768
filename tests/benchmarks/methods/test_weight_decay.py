"""Weight decay belongs to a task: whatever is raced on it decays the weights alike."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from benchmarks.methods import METHODS
from benchmarks.race import grids
from benchmarks.tasks import get_task

TASK = get_task("modular_addition")
RATE = 0.1
# One for each trajectory, and those of other tasks that may come to this one; the natural
# gradient at other rates is built in the same place as at a constant one.
METHODS_BY_RUN = {
    method.trajectory: method
    for method in METHODS.values()
    if (method.enters(TASK) or method.name in ("muon", "fismo"))
    and not method.name.startswith("natural_gradient_")
}


def test_a_task_asks_for_it():
    assert TASK.weight_decay == 1.0


@pytest.mark.parametrize("method", METHODS_BY_RUN.values(), ids=METHODS_BY_RUN)
def test_every_method_decays_the_weights_of_its_task(method, request):
    if "_by_" in method.name:  # what a rival refines with is ours
        request.getfixturevalue("cheap_refinement")
    # A matrix, a table and a vector: methods that treat them apart decay them alike.
    shapes = {"mlp": {"kernel": (4, 3), "bias": (3,)}, "embed": {"embedding": (5, 4)}}
    rng = np.random.default_rng(0)
    params, grads = (
        jax.tree.map(
            lambda shape: rng.normal(size=shape).astype(np.float32),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for _ in range(2)
    )
    setting = {**grids.grid(TASK, method)[0], "learning_rate": RATE}

    def first_update(weight_decay):
        task = dataclasses.replace(TASK, weight_decay=weight_decay)
        tx = optax.with_extra_args_support(method.build(task, setting))
        return tx.update(grads, tx.init(params), params, value=1.0)[0]

    # Decoupled: at the rate of the first step of the warm-up, whatever the direction.
    rate = RATE / TASK.warmup_steps
    # One program: what both have in common is compiled once.
    without, found = jax.jit(lambda: (first_update(0.0), first_update(3.0)))()
    expected = jax.tree.map(lambda u, p: u - rate * 3.0 * p, without, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        # Sums in f32 of a few terms of the size of the rate; schedule-free AdamW's updates are
        # differences of weights and carry their rounding, a ten-thousandth of that.
        wanted = dict(jax.tree_util.tree_leaves_with_path(expected))[path]
        np.testing.assert_allclose(leaf, wanted, atol=1e-3 * rate, err_msg=str(path))
