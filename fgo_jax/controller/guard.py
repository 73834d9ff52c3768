"""The stage before all others: is the call complete, and are its numbers finite?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax.controller.design import EXTRA_SIGNALS, Design

LARGEST = 1e36  # squared norm; below float32's 3.4e38, so that sums of a few such squares hold


def checked_extras(design: Design, extras: dict[str, Any], params: Any) -> dict[str, Any]:
    """The extra arguments of `update` without those that are None, averaged over the axis.

    Args:
      extras: keyword arguments of `update`; unknown ones pass unchanged.
      params: the parameters, or None.

    Raises:
      TypeError: where the probe or a trigger needs an argument that is missing.
      ValueError: where an average of the weights is asked for and there are no parameters.
    """
    known = (*EXTRA_SIGNALS.values(), "batch", "probe_params")
    given = {name: x for name, x in extras.items() if x is not None or name not in known}
    _check_triggers(design, given)
    _check_probe(design, given, given.get("probe_params", params))
    if design.average_weights is not None and params is None:
        raise ValueError("average_weights needs the parameters: call update(grads, state, params).")
    for name in EXTRA_SIGNALS.values():
        if name in given and design.axis_name is not None:
            given[name] = jax.lax.pmean(given[name], design.axis_name)
    return given


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


def all_finite(grads: Any, value: Any, axis_name: str | None) -> jax.Array:
    """Whether gradients and loss are finite and not too large to square, on every device.

    Second moments and norms hold squares. One beyond float32 would stay in a running mean for
    good, so it is a bad step like one of infinite gradients.

    Args:
      grads: pytree of arrays.
      value: the loss, or None.
      axis_name: of the devices that must agree; None for one program.

    Returns:
      [], bool.
    """
    # A sum of squares is one pass that vector units are good at; a test of each entry and a
    # logical reduction are up to three. NaN is not below the limit.
    leaves = [jnp.asarray(x) for x in (*jax.tree.leaves(grads), *jax.tree.leaves(value))]
    sums = [_sum_of_squares(x) for x in leaves if x.size]
    finite = sum(sums[1:], sums[0]) < LARGEST if sums else jnp.asarray(True)
    if axis_name is not None:
        finite = jax.lax.pmin(finite.astype(jnp.int32), axis_name) == 1
    return finite


def _sum_of_squares(x: jax.Array) -> jax.Array:
    x = jnp.abs(x) if jnp.iscomplexobj(x) else x
    return jnp.sum(jnp.square(x.astype(jnp.float32)))


def kept(finite: jax.Array, new: Any, old: Any) -> Any:
    """`new` after a finite step, `old` after a skipped one."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
