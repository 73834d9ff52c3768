"""The first stage: checks that state and gradients fit and are finite."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.controller.design import Design
from fgo_jax.controller.state import FgoState
from fgo_jax.linalg.fitting import check_fits, shapes
from fgo_jax.linalg.trees import for_sums, sum_squares
from fgo_jax.triggers.trigger import condition_names

LARGEST = 1e36  # squared norm; below float32's 3.4e38, so that sums of a few such squares hold


def check_state(design: Design, state: Any, params: Any) -> None:
    """Raises for a state that another optimizer made, or the same one with other options.

    Args:
      params: the parameters, or what has their shapes.
    """
    _checks.own_state("phased", state, FgoState)
    check_arrays(params)
    triggers = zip_longest(design.keys, design.triggers)
    kept = {
        "average of the weights": (state.average, design.average_weights is not None),
        "slow momentum": (state.slow, design.has_slow_momentum),
        "energy of an adaptive decay": (state.energy_fall, design.has_adaptive_decay),
    }
    pairs = {
        "signals": (sorted(state.signals), sorted(design.signals)),
        "conditions": (
            {key: sorted(conditions) for key, conditions in state.trigger_states.items()},
            {key: sorted(condition_names(trigger)) if trigger is not None else []
             for key, trigger in triggers},
        ),
        "number of transforms": (len(state.transforms), len(design.plan.transforms)),
        "shapes in the probe's state": _differing(design, state.probe_state, params),
        **{name: (bool(jax.tree.leaves(part)), here) for name, (part, here) in kept.items()},
    }  # fmt: skip
    for name, (there, here) in pairs.items():
        if there != here:
            raise ValueError(
                f"the state was made with other options. {name.capitalize()}: {there} in the "
                f"state, {here} in this optimizer. Resume with the options of the run before, or "
                "begin with tx.init(params)."
            )


def _differing(design: Design, state: Any, params: Any) -> tuple[Any, Any]:
    """The shapes in a probe's state, and in a new one, where they are not the same."""
    there = shapes(state)
    here = {} if design.probe is None else shapes(jax.eval_shape(design.probe.init, params))
    paths = [path for path in {**there, **here} if there.get(path) != here.get(path)]
    return {path: there.get(path) for path in paths}, {path: here.get(path) for path in paths}


def check_arrays(params: Any) -> None:
    """Raises for parameters that hold functions, such as a whole Equinox module."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if callable(leaf):
            raise ValueError(
                f"the parameters hold a function, at {jax.tree_util.keystr(path)}: pass the arrays "
                "alone, such as eqx.filter(model, eqx.is_inexact_array)."
            )


def check_shapes(grads: Any, params: Any, state: FgoState) -> None:
    """Raises if gradients do not fit the parameters or the state's means."""
    kept = {
        "the parameters": params,
        "the state's slow momentum": getattr(state.slow, "mean", None),
        "the state's average of the weights": getattr(state.average, "average", None),
    }
    for owner, tree in kept.items():
        if tree is not None:
            check_fits("gradient", grads, owner, tree)


def all_finite(grads: Any, value: Any, axis_name: str | None) -> jax.Array:
    """Whether gradients and loss are finite and not too large to square, on every device.

    Second moments and norms hold squares. An infinite one would stay in a running mean
    forever, so such a step is skipped too.

    Args:
      grads: pytree of arrays.
      value: the loss, or None.
      axis_name: of the devices that must agree; None for one program.

    Returns:
      [], bool.
    """
    # A sum of squares is one fast vectorised pass; testing each entry and reducing takes up to
    # three. NaN is not below the limit.
    leaves = [jnp.asarray(x) for x in (*jax.tree.leaves(grads), *jax.tree.leaves(value))]
    finite = sum_squares(for_sums(leaves)) < LARGEST
    if axis_name is not None:
        finite = jax.lax.pmin(finite.astype(jnp.int32), axis_name) == 1
    return finite


def skipped(finite: jax.Array, count: jax.Array) -> Any:
    """[], int32: the number of skipped steps with this one; it stops at the largest int32."""
    return jnp.where(finite, count, optax.safe_increment(count))
