"""The arguments of `phased`, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from fgo_jax import _checks
from fgo_jax.controller.handover import Plan
from fgo_jax.phases.phase import Phase
from fgo_jax.phases.rates import Warmup
from fgo_jax.probes.probe import Probe
from fgo_jax.triggers import Trigger

# Signals that come with the call of update, and the extra argument that brings each.
EXTRA_SIGNALS = {"loss": "value", "validation": "validation_value"}
# Names of the numbers in `fgo_jax.telemetry`; with a slash at the end, prefixes.
TOLD = (
    "phase", "phase_step", "total_step", "handover_left", "learning_rate", "skipped_steps", "stop",
    "uphill", "cosine", "slow_share", "energy_exponent", "started/", "cause/", "condition/",
    "bound/", "layer_noise/", "layer_rate/",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Design:
    """The phases, what ends them, and the limits on when; arguments as of `phased`."""

    phases: tuple[Phase, ...]
    triggers: tuple[Trigger, ...]
    probe: Probe | None
    plan: Plan
    handover_steps: Any
    min_steps: tuple[Any, ...]  # one for each phase
    total_steps: Any
    deadlines: tuple[float, ...] | None  # shares of total_steps, one for each phase but the last
    clip_norm: Any
    average_weights: Any
    axis_name: str | None
    seed: Any

    @property
    def has_slow_momentum(self) -> bool:
        return not all(_checks.is_off(phase.slow_share) for phase in self.phases)

    @property
    def smoothing_dtype(self) -> Any:
        """Of slow momentum and average: bfloat16 if a transform's momentum is; None is float32.

        Only bfloat16 is rounded at random. In float16 small steps would be lost.
        """
        dtypes = [getattr(transform, "momentum_dtype", None) for transform in self.plan.transforms]
        given = [jnp.dtype(dtype) for dtype in dtypes if dtype is not None]
        return jnp.dtype(jnp.bfloat16) if jnp.bfloat16 in given else None

    @property
    def has_adaptive_decay(self) -> bool:
        return any(phase.is_adaptive for phase in self.phases)

    @property
    def keys(self) -> tuple[str, ...]:
        """The phases' names, numbered so that they sort in the phases' order."""
        width = len(str(len(self.phases) - 1))
        return tuple(f"{i:0{width}d}_{phase.name}" for i, phase in enumerate(self.phases))

    @property
    def signals(self) -> tuple[str, ...]:
        return (*EXTRA_SIGNALS, *(() if self.probe is None else self.probe.signals))


def design(
    phases: Sequence[Phase],
    triggers: Sequence[Trigger],
    probe: Probe | None,
    *,
    handover_steps: Any,
    min_steps: Any,
    total_steps: Any,
    deadlines: Sequence[float] | None,
    clip_norm: Any,
    average_weights: Any,
    axis_name: str | None,
    seed: Any,
) -> Design:
    """Raises a ValueError that says what to change, or returns the checked design."""
    if isinstance(phases, Phase):
        raise ValueError("phases must be a list, also of one: fgo.phased([phase], []).")
    phases, triggers = tuple(phases), tuple(triggers)
    _check_phases(phases, total_steps)
    check_probe(probe)
    _check_triggers(triggers, len(phases), probe)
    _checks.integer("handover_steps", handover_steps)
    minima = tuple(min_steps) if isinstance(min_steps, Sequence) else (min_steps,) * len(phases)
    if len(minima) != len(phases):
        raise ValueError(
            f"min_steps: give one number, or one for each of the {len(phases)} phases."
        )
    for minimum in minima:
        _checks.integer("min_steps", minimum, 0)
    if total_steps is not None:
        _checks.integer("total_steps", total_steps)
    if clip_norm is not None:
        _checks.positive("clip_norm", clip_norm)
    if average_weights is not None:
        _checks.unit("average_weights", average_weights)
    shares = _deadlines(deadlines, total_steps, len(phases))
    _check_warmups(phases, total_steps, shares)
    return Design(
        phases, triggers, probe, Plan.of(phases), handover_steps, minima, total_steps, shares,
        clip_norm, average_weights, axis_name, seed,
    )  # fmt: skip


def _check_phases(phases: tuple[Any, ...], total_steps: Any) -> None:
    if not phases:
        raise ValueError("phased needs at least one phase, such as fgo.acquisition(3e-3).")
    for phase in phases:
        if not isinstance(phase, Phase):
            raise ValueError(
                f"phases must be made by fgo.acquisition, fgo.reask, fgo.execution or fgo.Phase, "
                f"got {type(phase).__name__}."
            )
    names = [phase.name for phase in phases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"two phases are called {', '.join(map(repr, twice))}: telemetry and fgo.force_phase "
            "tell phases by their names, so give each its own, as in "
            "dataclasses.replace(phase, name='polish')."
        )
    first = phases[0].decay
    if first is None or not first.relative:
        return
    if total_steps is None or not first.to_the_end:
        way = ", or total_steps=" if first.to_the_end else ""
        raise ValueError(
            f"phase {phases[0].name!r} comes first, so no steps before it give its decay a length: "
            f"pass one, as in fgo.decays.cosine(1000){way}."
        )


def _check_warmups(phases: tuple[Phase, ...], total_steps: Any, shares: Any) -> None:
    """Raises where a phase has to end before its warm-up does."""
    horizon = _checks.number(total_steps)
    ends = (1.0,) * len(phases) if shares is None else (*shares, 1.0)
    for phase, share in zip(phases, ends, strict=True):
        warmup = _checks.number(phase.rate.warmup_steps if isinstance(phase.rate, Warmup) else 0)
        if horizon is not None and warmup is not None and share * horizon < warmup:
            raise ValueError(
                f"total_steps={total_steps} ends phase {phase.name!r} by step "
                f"{share * horizon:.0f}, in its warm-up of {warmup:.0f} steps, so its peak rate is "
                "never reached: pass fewer warmup_steps or more total_steps."
            )


def check_probe(probe: Any) -> None:
    """Raises if not a probe, or if a signal is named like another telemetry number."""
    if probe is None:
        return
    if not isinstance(probe, Probe):
        raise ValueError(
            f"probe= must be an fgo.probes.Probe, such as fgo.probes.gradient_stream(), got "
            f"{type(probe).__name__}."
        )
    own = (*EXTRA_SIGNALS, *TOLD)
    for signal in probe.signals:
        if any(signal.startswith(n) if n.endswith("/") else signal == n for n in own):
            raise ValueError(
                f"the probe calls a signal {signal!r}, which is the name of another number in "
                "fgo.telemetry: give it another name."
            )


def _check_triggers(triggers: tuple[Any, ...], phases: int, probe: Probe | None) -> None:
    if len(triggers) not in (phases - 1, phases):
        raise ValueError(
            f"{phases} phases need {phases - 1} triggers (or {phases}, the last for "
            f"fgo.should_stop), got {len(triggers)}."
        )
    provided = {*EXTRA_SIGNALS, *(() if probe is None else probe.signals)}
    for trigger in triggers:
        if not isinstance(trigger, Trigger):
            raise ValueError(f"triggers must come from fgo.triggers, got {type(trigger).__name__}.")
        unknown = trigger.signals - trigger.optional - provided
        if unknown:
            raise ValueError(
                f"a trigger reads {sorted(unknown)}, which nothing measures: choose from "
                f"{sorted(provided)}, pass a probe= that provides it, or triggers= that read what "
                "yours provides."
            )


def _deadlines(deadlines: Any, total_steps: Any, count: int) -> tuple[float, ...] | None:
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
