"""The checks that optax ships for contributed optimizers, on every row of the table.

They find an optimizer by name. Here the name is a row's, so nothing of them is copied.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from optax.contrib import _common_test as shipped

from tests.contracts.table import TABLE, Row

# The functions below optax's own parameters: `test_optimizers17` is one of a number of calls.
CHECKS = {
    re.sub(r"\d+$", "", name): inspect.unwrap(method)
    for name, method in vars(shipped.ContribTest).items()
    if name.startswith("test_")
}
# Values of a check's parameters beside those that name the optimizer. The parabolas of a vector and
# of a matrix are both in the mixed target. One type for each check: test_contracts.py asks all of
# them what becomes of updates and state.
VALUES: dict[str, tuple[Any, ...]] = {
    "wrap": (False,),
    "target": (
        shipped._setup_rosenbrock,
        shipped._setup_mixed_tensor_target,
    ),
    "test_optimizers": ("float32",),
    "test_preserve_dtype": ("bfloat16",),
    "test_gradient_accumulation": ("bfloat16",),
    "test_state_shape_dtype_shard_stability": (jnp.float64,),
}
NAMED = {"self", "opt_name", "opt_kwargs", "wrapper_name", "wrapper_kwargs"}


# What test_contracts.py asks of every row, and more: types through a conditional, in more types and
# of the whole state; and injected numbers of every factory. So the first row alone is asked here.
ASKED_THERE = {
    "test_optimizers_can_be_wrapped_in_inject_hyperparams",
    "test_preserve_dtype",
    "test_state_shape_dtype_shard_stability",
}
# The learning rate of a row without a factory goes to a transformation of optax's own.
SCHEDULE = "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such"


def asked(check: str) -> list[Row]:
    """The rows that a check is made on."""
    if check in ASKED_THERE:
        return list(TABLE[:1])
    return [row for row in TABLE if check != SCHEDULE or row.factory]


def cases():
    for check, method in CHECKS.items():
        given: list[dict[str, Any]] = [{}]
        for name in inspect.signature(method).parameters:
            if name not in NAMED:
                values = VALUES[check if name == "dtype" else name]
                given = [{**old, name: value} for old in given for value in values]
        for arguments in given:
            told = [getattr(v, "__name__", str(v)) for v in arguments.values()]
            for row in asked(check):
                yield pytest.param(row, check, arguments, id="-".join([check, *told, row.name]))


def factory(row: Row):
    """An alias like optax's, with what the row's update needs beside the gradients."""

    def make(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        tx = optax.with_extra_args_support(row.make(learning_rate))
        return tx._replace(update=functools.partial(tx.update, **row.extras))

    # Not the name in a string, which a postponed annotation would be.
    make.__annotations__["learning_rate"] = optax.ScalarOrSchedule
    return make


def test_all_of_optax_s_checks_are_here():
    assert len(CHECKS) >= 7
    assert {"test_optimizers", SCHEDULE, *ASKED_THERE} <= CHECKS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("row", "check", "arguments"), list(cases()))
def test_as_shipped(row: Row, check: str, arguments: dict[str, Any], monkeypatch):
    monkeypatch.setattr(shipped, "_get_opt_factory", lambda name: factory(row))
    optimizer = {"opt_name": row.name, "opt_kwargs": {"learning_rate": row.learning_rate}}
    CHECKS[check](
        shipped.ContribTest(), **optimizer, wrapper_name=None, wrapper_kwargs=None, **arguments
    )
