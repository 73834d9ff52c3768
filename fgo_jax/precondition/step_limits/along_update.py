"""Shortens updates by the change of the model's outputs along them, from one jvp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fgo_jax import _checks
from fgo_jax.linalg import mesh
from fgo_jax.linalg.compiled import compiled_once
from fgo_jax.linalg.devices import as_varying, on_each_device, varying_axes
from fgo_jax.linalg.operator import check_examples, example_count
from fgo_jax.linalg.trees import laid_end_to_end, real32, sum_squares, vdot, wide

_SMALL = 4096  # Leaves up to this size share one sum of squares.


class StepLimitState(NamedTuple):
    """State of :func:`clip_by_softmax_radius` and :func:`scale_by_friction_limit`."""

    limit_step: jax.Array  # shape=(), dtype=jnp.int32.
    measurements: jax.Array  # shape=(), dtype=jnp.int32; how many gave finite numbers.
    along_unit_step: jax.Array  # shape=(limits,), dtype=jnp.float32; the last measurement.
    shrinkage: jax.Array  # shape=(), dtype=jnp.float32; the factor of the last update.


class Step(NamedTuple):
    """A proposed update p."""

    norm: jax.Array  # [], float32; ||p|| > 0
    slope: jax.Array  # [], float32; g^T p / ||p||, zero where no limit asks for it


class Limit(NamedTuple):
    """How far to go along an update.

    Attributes:
      measure: (outputs, their tangent along the unit vector, batch) -> float32 [].
      scale: (that number, `Step`) -> the factor that the limit allows, float32 []. Above 1 the
        limit does not bind.
      over: (the number, axis name) -> that of all devices, each of which has part of the batch.
    """

    measure: Callable[[Any, Any, Any], jax.Array]
    scale: Callable[[jax.Array, Step], jax.Array]
    over: Callable[[jax.Array, str], jax.Array]


def limit_updates(
    predict_fn: Callable[[Any, Any], Any],
    limits: Sequence[Limit],
    *,
    name: str,
    every: Any,
    examples: int | None,
    needs_gradient: bool,
    axis_name: str | None,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies an update by the least factor that the limits allow, between 0 and 1."""
    _checks.model(predict_fn)
    _checks.integer("every", every)
    check_examples(examples, None, minimum=1)

    def init(params: Any) -> StepLimitState:
        del params
        return StepLimitState(
            limit_step=jnp.zeros([], jnp.int32),
            measurements=jnp.zeros([], jnp.int32),
            along_unit_step=jnp.zeros([len(limits)], jnp.float32),
            shrinkage=jnp.ones([], jnp.float32),
        )

    def measure(params: Any, batch: Any, step: Any, good: jax.Array, norm: jax.Array) -> jax.Array:
        leaves, treedef = jax.tree.flatten(step)
        unit = [jnp.where(g, p / norm, 0.0) for g, p in zip(good, leaves, strict=True)]
        count = example_count(batch, examples=examples, batch_size=None, minimum=1)
        part = mesh.examples(batch, 0, count)
        params = on_each_device(params, part, axis_name)
        unit = jax.tree.map(_tangent, treedef.unflatten(unit), params)
        outputs, tangent = jax.jvp(lambda p: predict_fn(p, part), (params,), (unit,))
        outputs = optax.tree.cast(outputs, jnp.float32)
        tangent = optax.tree.cast(tangent, jnp.float32)
        found = [limit.measure(outputs, tangent, part) for limit in limits]
        if axis_name is not None:
            found = [limit.over(x, axis_name) for limit, x in zip(limits, found, strict=True)]
        return jnp.stack(found)

    def update(updates, state, params=None, **extra_args):
        _check_call(name, params, extra_args, needs_gradient)
        if not jax.tree.leaves(updates):
            return updates, state
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, updates))
        # At least float32: a tiny factor would be zero in a narrower type.
        proposed = list(map(wide, leaves))
        good, norm = _finite_norm(proposed)
        moves = jnp.isfinite(norm) & (norm > 0)
        safe = jnp.where(moves, norm, 1.0)

        due = state.limit_step % jnp.asarray(every, jnp.int32) == 0
        due = moves & (due | (state.measurements == 0))
        # Everything that only a measurement needs is computed inside. A step without one costs one
        # norm and one product.
        found = jax.lax.cond(
            due,
            lambda params, batch, direction, old: measure(params, batch, *direction),
            lambda params, batch, direction, old: old,
            params,
            extra_args["batch"],
            (treedef.unflatten(proposed), good, safe),
            state.along_unit_step,
        )
        taken = due & jnp.all(jnp.isfinite(found))
        found = jnp.where(taken, found, state.along_unit_step)
        measurements = state.measurements + taken.astype(jnp.int32)

        slope = jnp.zeros([], jnp.float32)
        if needs_gradient:
            slope = _slope(treedef.flatten_up_to(extra_args["grad"]), proposed) / safe
        step = Step(safe, slope)
        allowed = [limit.scale(found[i], step) for i, limit in enumerate(limits)]
        shrinkage = jnp.clip(jnp.stack(allowed).min(), 0.0, 1.0)
        shrinkage = jnp.where(moves & (measurements > 0), shrinkage, 1.0)
        shrinkage = jnp.where(jnp.isfinite(norm), shrinkage, 0.0)
        new = StepLimitState(
            limit_step=jnp.asarray(optax.safe_increment(state.limit_step)),
            measurements=measurements,
            along_unit_step=found,
            shrinkage=shrinkage,
        )
        shrunk = [
            jnp.where(g, p * shrinkage.astype(p.dtype), jnp.zeros_like(p)).astype(u.dtype)
            for g, p, u in zip(good, proposed, leaves, strict=True)
        ]
        return treedef.unflatten(shrunk), optax.tree.cast_like(new, state)

    return optax.GradientTransformationExtraArgs(mesh.on_mesh(init), compiled_once(update))


def _tangent(unit: jax.Array, leaf: Any) -> Any:
    """In the leaf's dtype; a leaf of integers has none, which JAX writes as float0."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return unit.astype(jnp.result_type(leaf))
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)


def _finite_norm(leaves: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Which leaves have a finite sum of squares, and the norm of those."""

    def by_leaf(leaves: Sequence[jax.Array], total: jax.Array) -> tuple[jax.Array, jax.Array]:
        del total
        squares = jnp.stack([sum_squares(leaf) for leaf in leaves])
        good = jnp.isfinite(squares)
        return good, jnp.sum(jnp.where(good, squares, 0.0))

    def whole(leaves: Sequence[jax.Array], total: jax.Array) -> tuple[jax.Array, jax.Array]:
        return as_varying((jnp.ones([len(leaves)], jnp.bool_), total), varying_axes(leaves))

    # Leaf by leaf only if one is bad: on a small model that many sums cost a few percent of a step.
    total = sum_squares(laid_end_to_end(leaves, _SMALL))
    good, square = jax.lax.cond(jnp.isfinite(total), whole, by_leaf, leaves, total)
    return good, jnp.sqrt(square)


def _slope(grads: Sequence[jax.Array], proposed: Sequence[jax.Array]) -> jax.Array:
    """g^T p over the leaves where the product is finite."""
    products = jnp.stack(
        [vdot(real32(jnp.asarray(g)), real32(p)) for g, p in zip(grads, proposed, strict=True)]
    )
    return jnp.sum(jnp.where(jnp.isfinite(products), products, 0.0))


def _check_call(name: str, params: Any, extra_args: dict[str, Any], needs_gradient: bool) -> None:
    call = "update(grads, state, params, batch=batch" + (", grad=grads)" * needs_gradient or ")")
    if "batch" not in extra_args:
        raise TypeError(f"{name} runs the model on batch=, which is missing: call {call}.")
    if needs_gradient and "grad" not in extra_args:
        raise TypeError(f"{name} reads the raw gradient from grad=, which is missing: call {call}.")
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if params is None or any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise TypeError(
            f"{name} runs the model and needs all of its parameters: call {call}, and chain it "
            "behind optax.masked or optax.partition, not inside."
        )
