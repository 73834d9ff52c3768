"""A run in words: where it stands, what it waits for, when and why its phases began."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax import core

from fgo_jax.controller.descent import mean_cosine, points_uphill
from fgo_jax.controller.state import BY_DEADLINE, BY_HAND, BY_TRIGGER, FgoState, phase_names
from fgo_jax.steering.find import states_in
from fgo_jax.triggers.naming import in_words

_WHY = {
    BY_TRIGGER: "its trigger held",
    BY_DEADLINE: "its deadline had come",
    BY_HAND: "it was asked for by hand",
}


def explain(opt_state: Any) -> str:
    """Says in a few sentences what a run does, what it waits for, and what happened so far.

    Args:
      opt_state: as in :func:`fgo_jax.telemetry`, with concrete numbers.

    Returns:
      Text of a few lines. Measured numbers come with one standard error. With several states
      in the tree, one paragraph for each, headed by its path.

    Raises:
      ValueError: where there is no :class:`fgo_jax.FgoState`, inside `jax.jit`, or for states
        that are stacked.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(3e-3)
      >>> print(fgo.explain(tx.init({"w": jnp.ones(2)})).splitlines()[0])
      In acquisition since step 0; now at step 0, learning rate 0.

    Source: the conditions are those of section 4 of the FGO paper, as
    :func:`fgo_jax.triggers.defaults` lists them.
    """
    states = states_in(opt_state)
    if len(states) == 1:
        return _paragraph(next(iter(states.values())))
    return "\n\n".join(f"{path}:\n{_paragraph(state)}" for path, state in states.items())


def _paragraph(state: FgoState) -> str:
    _check(state)
    clock, rate = state.clock, float(state.fgo_learning_rate)
    phase, names = int(clock.phase), phase_names(state)
    lines = [
        f"In {names[phase]} since step {int(clock.started[phase])}; now at step "
        f"{int(clock.total_step)}, learning rate {rate:.3g}."
    ]
    if left := int(clock.handover_left):
        lines.append(
            f"Hand-over, steps left: {left}. The transform of {names[int(clock.driver)]} makes "
            "the updates while the next one's statistics fill."
        )
    else:
        lines += _conditions(state, phase)
    if phase == len(names) - 1:
        stopped = bool(clock.stop_flag)
        lines.append("Its trigger has fired: stop." if stopped else "No phase comes after it.")
    lines += _history(state)
    if points_uphill(state.descent):
        lines.append(
            f"The directions point uphill (cosine {float(mean_cosine(state.descent)):.2f} with the "
            "gradients): does the transform have a minus sign or a learning rate of its own?"
        )
    if skipped := int(state.skipped_steps):
        lines.append(
            f"Steps skipped, as gradients or loss were not finite or overflowed: {skipped}."
        )
    return "\n".join(lines)


def _conditions(state: FgoState, phase: int) -> list[str]:
    """What the running phase waits for, what holds, and what is not known yet."""
    titles = {-1: "Waits for", 0: "Not known yet", 1: "Holds"}
    found: dict[int, list[str]] = {verdict: [] for verdict in titles}
    for name, condition in state.trigger_states[sorted(state.trigger_states)[phase]].items():
        words = in_words(name, float(condition.bound))
        found[int(condition.verdict)].append(words + _now(state.signals, name))
    return [f"{titles[v]}: {'; '.join(items)}." for v, items in found.items() if items]


def _now(signals: dict[str, jax.Array], name: str) -> str:
    """The newest number of the signal that a condition is named after."""
    bare = name.removeprefix("not_")
    named = [signal for signal in signals if bare.startswith(f"{signal}_")]
    if not named:
        return ""
    value, error = map(float, signals[max(named, key=len)])
    if math.isnan(value):
        return " (not measured yet)"
    if math.isinf(error):
        return f" (now {value:.3g}, not to be trusted)"
    return f" (now {value:.3g})" if math.isnan(error) else f" (now {value:.3g} +- {error:.1g})"


def _history(state: FgoState) -> list[str]:
    """When and why each phase began, in the order of their beginnings; not that of the start."""
    started, causes = state.clock.started, state.clock.causes
    names = phase_names(state)
    begun = sorted((int(started[i]), i) for i in range(len(names)) if int(causes[i]) in _WHY)
    return [
        f"{names[i][:1].upper()}{names[i][1:]} began at step {step}: {_WHY[int(causes[i])]}."
        for step, i in begun
    ]


def _check(state: FgoState) -> None:
    if any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(state.clock)):
        raise ValueError("explain reads numbers: call it outside jax.jit, or use fgo.telemetry.")
    if state.clock.phase.ndim:
        raise ValueError(
            "the state holds several runs: pass one, as in jax.tree.map(lambda x: x[0], state)."
        )
