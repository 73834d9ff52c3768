"""The probe's measurement, and the signals that triggers read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fgo_jax import _checks
from fgo_jax.controller.design import EXTRA_SIGNALS, Design
from fgo_jax.controller.state import FgoState
from fgo_jax.linalg.devices import as_varying, varying_axes
from fgo_jax.precondition.shared.model import restrict
from fgo_jax.probes.probe import Estimate, MicroGradients, Probe, ProbeInputs
from fgo_jax.triggers import Signal


def measure(
    design: Design,
    state: FgoState,
    grads: Any,
    params: Any,
    extras: dict[str, Any],
    finite: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
    """The probe's new state and its estimates, [2]; both stay as they are between measurements.

    Args:
      params: the parameters of the whole model, or None.
      extras: extra arguments of `update`, for a probe's `batch`.
      finite: [], bool; a step that is not finite measures nothing.
    """
    probe, clock = design.probe, state.clock
    if probe is None:
        return (), {}
    old = state.probe_state
    if len(design.plan.transforms) > 1:
        # Rows in another metric must not enter the open window.
        begun = finite & (clock.driver_since == clock.total_step) & (clock.total_step > 0)
        old = optax.tree.where(begun, probe.renew(old), old)
    key = _step_key(state.probe_key, clock.total_step)
    micro = extras.get("micro_grads")
    if micro is not None:  # they are whole, also inside `optax.masked` and `optax.partition`
        first, second = (restrict(half, grads) for half in micro[:2])
        micro = MicroGradients(first, second, micro.scale)
    inputs = ProbeInputs(
        grads, None, params, extras.get("batch"), key, clock.total_step, micro=micro
    )
    probe.check(inputs)

    # All that a measurement needs is computed inside its branch, the key too: each operation
    # outside would cost a microsecond of every step.
    def run(inputs, transforms, driver, old, estimates):
        rows = design.plan.rows(inputs.grads, transforms, driver)
        key = _step_key(inputs.key, inputs.step)
        inputs = inputs._replace(rows=rows, key=key, axis_name=design.axis_name)
        if micro is not None:
            halves = [design.plan.rows(half, transforms, driver) for half in inputs.micro[:2]]
            inputs = inputs._replace(micro=MicroGradients(halves[0], halves[1], inputs.micro.scale))
        new = optax.tree.cast_like(probe.measure(inputs, old), old)
        found = _read(probe, new)
        # A probe may return constants, such as an unknown error.
        return as_varying((new, found), varying_axes((old, estimates)))

    def wait(inputs, transforms, driver, old, estimates):
        del inputs, transforms, driver
        return old, estimates

    return jax.lax.cond(
        finite & probe.due(old, clock.total_step), run, wait,
        inputs._replace(key=state.probe_key), state.transforms, clock.driver, old,
        {name: state.signals[name] for name in probe.signals},
    )  # fmt: skip


def observed(
    design: Design,
    state: FgoState,
    probe_state: Any,
    estimates: dict[str, jax.Array],
    extras: dict[str, Any],
    names: Iterable[str],
) -> dict[str, Signal]:
    """The named signals that this step has: the probe's, and what came with the call."""
    signals, probe = {}, design.probe
    for signal in names:
        name = EXTRA_SIGNALS.get(signal)
        if name in extras:
            number = jnp.asarray(extras[name], jnp.float32)
            unknown = jnp.full([], jnp.nan, jnp.float32)
            fresh = ~jnp.isnan(number)
            if signal == "validation":
                # A loop may repeat the last value until the next validation: not a report.
                fresh &= number != state.clock.reported
            signals[signal] = Signal(number, unknown, fresh)
        elif probe is not None and signal in estimates:
            fresh = probe.counter(probe_state, signal) != probe.counter(state.probe_state, signal)
            value, error = estimates[signal]
            signals[signal] = Signal(value, error, fresh)
    return signals


def latest(
    state: FgoState,
    estimates: dict[str, jax.Array],
    signals: dict[str, Signal],
    finite: jax.Array,
) -> dict[str, jax.Array]:
    """The newest estimate of each signal, for the state."""

    def newest(name: str, old: jax.Array) -> jax.Array:
        if name in estimates:
            return estimates[name]
        if name not in signals:
            return old
        value, _, fresh = signals[name]
        return jnp.stack([jnp.where(finite & fresh, value, old[0]), old[1]])

    return {name: newest(name, old) for name, old in state.signals.items()}


def _read(probe: Probe, state: Any) -> dict[str, jax.Array]:
    """The probe's estimates, [2], float32; raises where they are anything else."""
    if not hasattr(state, "evaluations"):
        raise ValueError(
            "a probe's state needs an int32 field `evaluations`: see fgo.probes.Probe."
        )
    estimates: Any = probe.read(state)
    if not isinstance(estimates, dict) or set(estimates) != set(probe.signals):
        found = sorted(estimates) if isinstance(estimates, dict) else type(estimates).__name__
        raise ValueError(
            f"a probe reads an Estimate of each of its signals {sorted(probe.signals)} into a "
            f"dict, got {found}."
        )
    for name, estimate in estimates.items():
        if not isinstance(estimate, Estimate):
            raise ValueError(
                f"the probe reads {name!r} as {type(estimate).__name__}: return an "
                "fgo.probes.Estimate(value, error), with an error of NaN where none is known."
            )
        for part in estimate:
            _checks.scalar(f"the probe's {name!r}", part)
    return {name: _pair(estimate) for name, estimate in estimates.items()}


def _pair(estimate: Estimate) -> jax.Array:
    """[2]; the value, NaN beyond float32, and the error. An infinite error has a meaning."""
    value, error = (jnp.asarray(part, jnp.float32) for part in estimate)
    return jnp.stack([jnp.where(jnp.isinf(value), jnp.nan, value), error])


def _step_key(data: jax.Array, step: jax.Array) -> jax.Array:
    """A key of this step's own.

    Threefry of different keys is independent, so counting in the key is as good as
    `jax.random.fold_in`, which runs a hash. The count goes to the first word; the second one
    holds the user's seed.
    """
    counted = data + jnp.stack([step.astype(jnp.uint32), jnp.zeros([], jnp.uint32)])
    return jax.random.wrap_key_data(counted, impl="threefry2x32")
