"""What phases, triggers and a probe ask of each other, and of the call to `update`."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fgo_jax import _checks
from fgo_jax.phases.phase import Phase
from fgo_jax.triggers import Trigger

# Signals that come with the call, and the extra argument that brings each.
EXTRA_SIGNALS = {"loss": "value", "validation": "validation_value"}


def check_parts(phases: tuple[Any, ...], triggers: tuple[Any, ...], probe: Any) -> None:
    if not phases:
        raise ValueError("phased needs at least one phase, such as fgo.acquisition(3e-3).")
    for phase in phases:
        if not isinstance(phase, Phase):
            raise ValueError(
                f"phases must be made by fgo.acquisition, fgo.reask, fgo.execution or fgo.Phase, "
                f"got {type(phase).__name__}."
            )
    if len(triggers) not in (len(phases) - 1, len(phases)):
        raise ValueError(
            f"{len(phases)} phases need {len(phases) - 1} triggers (or {len(phases)}, the last "
            f"for fgo.should_stop), got {len(triggers)}."
        )
    provided = {*EXTRA_SIGNALS, *(() if probe is None else probe.signals)}
    for trigger in triggers:
        if not isinstance(trigger, Trigger):
            raise ValueError(f"triggers must come from fgo.triggers, got {type(trigger).__name__}.")
        unknown = trigger.signals - provided
        if unknown:
            raise ValueError(
                f"a trigger reads {sorted(unknown)}, which nothing measures: choose from "
                f"{sorted(provided)}, or pass a probe= that provides it."
            )


def check_extras(probe: Any, triggers: tuple[Trigger, ...], given: Any, model: Any) -> None:
    for trigger in triggers:
        for signal, name in EXTRA_SIGNALS.items():
            if signal in trigger.signals - trigger.optional and name not in given:
                raise TypeError(
                    f"a trigger reads {signal!r}: call update(grads, state, params, {name}=...), "
                    "or wrap it in fgo.triggers.if_given."
                )
    if probe is None:
        return
    if "batch" in probe.requires and "batch" not in given:
        raise TypeError(
            "the probe runs the model: call update(grads, state, params, batch=batch), or use "
            "fgo.probes.gradient_stream(), which needs no batch."
        )
    if "params" in probe.requires:
        nodes = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        if model is None or any(isinstance(node, optax.MaskedNode) for node in nodes):
            raise TypeError(
                "the probe runs the model and needs all of its parameters: call update(grads, "
                "state, params), and under optax.masked or optax.partition pass "
                "probe_params=params as well."
            )


def deadline_shares(deadlines: Any, total_steps: Any, count: int) -> tuple[float, ...] | None:
    if total_steps is None:
        if deadlines is not None:
            raise ValueError("deadlines are shares of total_steps: pass total_steps= as well.")
        return None
    shares = (
        tuple(0.7 * (index + 1) / (count - 1) for index in range(count - 1))
        if deadlines is None
        else tuple(deadlines)
    )
    if len(shares) != count - 1 or list(shares) != sorted(shares):
        raise ValueError(f"deadlines: give {count - 1} shares of total_steps, in rising order.")
    for share in shares:
        _checks.fraction("deadlines", share)
    return shares
