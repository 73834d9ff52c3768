"""Checks the extra arguments of `update`: presence, spelling and shape."""

from __future__ import annotations

import difflib
import functools
import inspect
from typing import Any

import jax
import optax

from fgo_jax import _checks
from fgo_jax.controller.design import EXTRA_SIGNALS, Design

KNOWN = (*EXTRA_SIGNALS.values(), "batch", "probe_params")
# What these arguments are called elsewhere.
SYNONYMS = {
    "value": ("loss", "losses", "loss_value", "train_loss", "training_loss"),
    "validation_value": (
        "val_loss", "valid_loss", "validation_loss", "eval_loss", "val_value", "validation",
    ),
    "batch": ("batches", "minibatch"),
}  # fmt: skip
ALIKE = 0.8  # least similarity of a misspelt name; value_fn and value have 0.77


def checked_extras(design: Design, extras: dict[str, Any], params: Any) -> dict[str, Any]:
    """The extra arguments of `update` without those that are None, averaged over the axis.

    Args:
      extras: keyword arguments of `update`; unknown ones pass unchanged.
      params: the parameters, or None.

    Raises:
      TypeError: where the probe or a trigger needs an argument that is missing, or where one
        is misspelt.
      ValueError: where an average of the weights is asked for and there are no parameters, or
        where a number is not a scalar.
    """
    given = {name: x for name, x in extras.items() if x is not None or name not in KNOWN}
    _check_spelling(design, given)
    _check_triggers(design, given)
    _check_probe(design, given, given.get("probe_params", params))
    if design.average_weights is not None and params is None:
        raise ValueError("average_weights needs the parameters: call update(grads, state, params).")
    for name in sorted(set(EXTRA_SIGNALS.values()) & set(given)):
        number: Any = given[name]
        _checks.scalar(name, number)
        if design.axis_name is not None:
            given[name] = jax.lax.pmean(number, design.axis_name)
    return given


def _check_spelling(design: Design, given: dict[str, Any]) -> None:
    for name in given:
        likely = _likely(name)
        # A phase's transform may take an argument of such a name, and so may another member of
        # the chain, where the right one is passed as well.
        if likely is None or likely in given or _takes(design.plan.transforms, name, set()):
            continue
        raise TypeError(
            f"update got {name}=, which nothing here reads: did you mean {likely}=? If it is for "
            f"another member of your chain, pass {likely}= too."
        )


def _likely(name: str) -> str | None:
    """The argument that a name was probably meant to be, or None for another name."""
    if name in KNOWN:
        return None
    for known, others in SYNONYMS.items():
        if name in others:
            return known
    return next(iter(difflib.get_close_matches(name, KNOWN, 1, ALIKE)), None)


def _takes(item: Any, name: str, seen: set[int]) -> bool:
    """Whether a function, or one in its closure as in a chain, has such an argument."""
    if id(item) in seen:
        return False
    seen.add(id(item))
    if isinstance(item, dict):
        item = tuple(item.values())
    if isinstance(item, (tuple, list)):
        return any(_takes(part, name, seen) for part in item)
    if isinstance(item, functools.partial):
        return name not in item.keywords and _takes(item.func, name, seen)
    if not inspect.isfunction(item):
        return False
    if name in inspect.signature(item).parameters:
        return True
    # An empty cell has no contents yet.
    cells = item.__closure__ or ()
    return any(_takes(cell.cell_contents, name, seen) for cell in cells if _filled(cell))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _check_triggers(design: Design, given: dict[str, Any]) -> None:
    for trigger in design.triggers:
        for signal, name in EXTRA_SIGNALS.items():
            if signal in trigger.signals - trigger.optional and name not in given:
                raise TypeError(
                    f"a trigger reads {signal!r}: call update(grads, state, params, {name}=...), "
                    "or wrap it in fgo.triggers.if_given."
                )


def _check_probe(design: Design, given: dict[str, Any], model: Any) -> None:
    required = () if design.probe is None else design.probe.requires
    if "batch" in required and "batch" not in given:
        raise TypeError(
            "the probe runs the model: call update(grads, state, params, batch=batch), or use "
            "fgo.probes.gradient_stream(), which needs no batch."
        )
    if "params" in required:
        nodes = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        if model is None or any(isinstance(node, optax.MaskedNode) for node in nodes):
            raise TypeError(
                "the probe runs the model and needs all of its parameters: call update(grads, "
                "state, params), and under optax.masked or optax.partition pass "
                "probe_params=params as well."
            )
