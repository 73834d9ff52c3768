"""The model that a transform runs, and the part of its parameters that the transform updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def model_and_batch(name: str, params: Any, extra_args: dict[str, Any]) -> tuple[Any, Any]:
    """The whole parameter tree and the batch, from the arguments of `update`."""
    if "batch" not in extra_args:
        raise TypeError(f"{name} runs the model: call update(grads, state, params, batch=batch).")
    model = extra_args.get("probe_params")
    model = params if model is None else model
    nodes = jax.tree.leaves(model, is_leaf=_is_masked)
    if model is None or any(map(_is_masked, nodes)):
        raise TypeError(
            f"{name} runs the model and needs all of its parameters: call update(grads, state, "
            "params, batch=batch), and under optax.masked or optax.partition pass "
            "probe_params=params as well."
        )
    return model, extra_args["batch"]


def restrict(whole: Any, part: Any) -> Any:
    """The leaves of `whole` where `part` has leaves; `optax.MaskedNode` elsewhere, as in `part`."""
    return jax.tree.map(
        lambda node, below: node if _is_masked(node) else below, part, whole, is_leaf=_is_masked
    )


def merge(part: Any, whole: Any) -> Any:
    """`whole`, with the leaves of `part` in the places that are not masked in it."""
    return jax.tree.map(
        lambda node, below: below if _is_masked(node) else node, part, whole, is_leaf=_is_masked
    )


def lift(part: Any, whole: Any) -> Any:
    """A vector like `whole`: `part` where it has leaves, zeros in float32 elsewhere."""
    return merge(part, jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), whole))


def key_data(seed: int) -> jax.Array:
    """A raw key: `optax.tree.cast_like` does not take typed ones."""
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def key_of_step(data: jax.Array, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.wrap_key_data(data, impl="threefry2x32"), step)


def device_number(axis_name: str | None) -> Any:
    """A number that makes the draws of devices with different examples differ."""
    return 0 if axis_name is None else jax.lax.axis_index(axis_name)
