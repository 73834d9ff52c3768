"""What a model's outputs do along a proposed update, measured on a cadence: one jvp for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax._norms import sum_squares
from fgo_jax.probes.operator import check_examples, example_count, vdot


class StepLimitState(NamedTuple):
    """State of `clip_by_softmax_radius` and `scale_by_friction_limit`."""

    limit_step: jax.Array  # shape=(), dtype=jnp.int32.
    measurements: jax.Array  # shape=(), dtype=jnp.int32; those that gave finite numbers.
    along_unit_step: jax.Array  # shape=(limits,), dtype=jnp.float32; the last measurement.
    shrinkage: jax.Array  # shape=(), dtype=jnp.float32; what the last update was multiplied by.


class Step(NamedTuple):
    """A proposed update p."""

    norm: jax.Array  # [], float32; ||p|| > 0
    slope: jax.Array  # [], float32; g^T p / ||p||, zero where no limit asks for it


class Limit(NamedTuple):
    """How far to go along an update.

    Attributes:
      measure: (outputs, their tangent along the unit vector, batch) -> f32 [].
      scale: (that number, `Step`) -> the factor that the limit allows; what is above 1
        does not bind.
    """

    measure: Callable[[Any, Any, Any], jax.Array]
    scale: Callable[[jax.Array, Step], jax.Array]


def limit_updates(
    predict_fn: Callable[[Any, Any], Any],
    limits: Sequence[Limit],
    *,
    name: str,
    every: Any,
    examples: int | None,
    needs_gradient: bool,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies an update by the least factor that the limits allow, between 0 and 1."""
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

    def measure(params: Any, batch: Any, unit: Any) -> jax.Array:
        count = example_count(batch, examples=examples, batch_size=None, minimum=1)
        part = jax.tree.map(lambda leaf: leaf[:count], batch)
        unit = optax.tree.cast_like(unit, params)
        outputs, tangent = jax.jvp(lambda p: predict_fn(p, part), (params,), (unit,))
        outputs, tangent = optax.tree.cast((outputs, tangent), jnp.float32)
        return jnp.stack([limit.measure(outputs, tangent, part) for limit in limits])

    def update(updates, state, params=None, **extra_args):
        _check_call(name, params, extra_args, needs_gradient)
        if not jax.tree.leaves(updates):
            return updates, state
        proposed = jax.tree.map(_sane, updates)
        norm = jnp.sqrt(sum_squares(proposed))
        # A step that is longer than float32 can say is beyond any limit.
        moves = jnp.isfinite(norm) & (norm > 0)
        safe = jnp.where(moves, norm, 1.0)
        unit = jax.tree.map(lambda p: p.astype(jnp.float32) / safe, proposed)

        due = state.limit_step % jnp.asarray(every, jnp.int32) == 0
        due = moves & (due | (state.measurements == 0))
        found = jax.lax.cond(
            due,
            lambda params, batch, unit, old: measure(params, batch, unit),
            lambda params, batch, unit, old: old,
            params,
            extra_args["batch"],
            unit,
            state.along_unit_step,
        )
        taken = due & jnp.all(jnp.isfinite(found))
        found = jnp.where(taken, found, state.along_unit_step)
        measurements = state.measurements + taken.astype(jnp.int32)

        slope = jnp.zeros([], jnp.float32)
        if needs_gradient:
            grad = jax.tree.map(lambda g: _sane(g).astype(jnp.float32), extra_args["grad"])
            slope = vdot(grad, unit)
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
        shrunk = jax.tree.map(
            lambda p, u: (p * shrinkage.astype(p.dtype)).astype(u.dtype), proposed, updates
        )
        return shrunk, optax.tree.cast_like(new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _sane(u: jax.Array) -> jax.Array:
    """A leaf of an update in float32 at least; zero if any entry of it is not finite."""
    u = u.astype(jnp.promote_types(u.dtype, jnp.float32))
    return jnp.where(jnp.all(jnp.isfinite(u)), u, jnp.zeros_like(u))


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


def check_predict(predict_fn: Any) -> None:
    if not callable(predict_fn):
        raise ValueError(
            "predict_fn must be a function (params, batch) -> outputs, got "
            f"{type(predict_fn).__name__}."
        )
