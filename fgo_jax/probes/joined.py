"""Several probes in one run, each at its own cadence."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fgo_jax.probes.probe import Estimate, Probe, ProbeInputs


class JoinedState(NamedTuple):
    """The states of all probes."""

    evaluations: jax.Array  # [], int32; of all probes together
    members: tuple[Any, ...]  # the state of each probe


def joined(*probes: Probe) -> Probe:
    """Measures with several probes in one run, each at its own cadence.

    The signals are those of all of them. Where two measure a signal of the same name, it is that
    of the first. A trigger counts a signal as new when its own probe has measured.

    :func:`fgo_jax.probes.trajectory` and :func:`fgo_jax.probes.commutator` measure no dimension of
    the gradient's noise, which the default triggers read. So join them to the default probe.

    Args:
      *probes: one or more. Their costs add up.

    Returns:
      A :class:`fgo_jax.probes.Probe` that requires what any of them does. Its state's ``members``
      are theirs, in order.

    Raises:
      ValueError: unless it is given one or more probes.

    Example:
      >>> import fgo_jax as fgo
      >>> tx = fgo.target_acquisition(
      ...     3e-3,
      ...     probe=fgo.probes.joined(fgo.probes.gradient_stream(), fgo.probes.trajectory()),
      ...     triggers={"reask": fgo.triggers.below("path_dimension", 1.5)},
      ... )

    Source: this library.
    """
    if not probes or not all(isinstance(probe, Probe) for probe in probes):
        raise ValueError(
            "joined takes one or more probes as its arguments, such as "
            f"joined(gradient_stream(), trajectory()), got {probes!r}."
        )
    owner = {name: i for i, probe in reversed(list(enumerate(probes))) for name in probe.signals}
    signals = tuple(dict.fromkeys(name for probe in probes for name in probe.signals))

    def total(members: tuple[Any, ...]) -> jax.Array:
        return functools.reduce(jnp.add, [member.evaluations for member in members])

    def init(params: Any) -> JoinedState:
        members = tuple(probe.init(params) for probe in probes)
        return JoinedState(jnp.zeros([], jnp.int32), members)

    def due(state: JoinedState, step: jax.Array) -> jax.Array:
        each = zip(probes, state.members, strict=True)
        return functools.reduce(jnp.logical_or, [probe.due(own, step) for probe, own in each])

    def measure(inputs: ProbeInputs, state: JoinedState) -> JoinedState:
        # The name of an axis is no array, so it does not go through the conditional.
        arrays, axis_name = inputs._replace(axis_name=None), inputs.axis_name

        def member(probe: Probe, own: Any) -> Any:
            def run(arrays: ProbeInputs, own: Any) -> Any:
                return probe.measure(arrays._replace(axis_name=axis_name), own)

            due = probe.due(own, inputs.step)
            return jax.lax.cond(due, run, lambda _, own: own, arrays, own)

        members = tuple(map(member, probes, state.members))
        return JoinedState(total(members), members)

    def read(state: JoinedState) -> dict[str, Estimate]:
        found = [probe.read(own) for probe, own in zip(probes, state.members, strict=True)]
        return {name: found[owner[name]][name] for name in signals}

    def renew(state: JoinedState) -> JoinedState:
        each = zip(probes, state.members, strict=True)
        return state._replace(members=tuple(probe.renew(own) for probe, own in each))

    def check(inputs: ProbeInputs) -> None:
        for probe in probes:
            probe.check(inputs)

    return Probe(
        signals=signals,
        init=init,
        due=due,
        measure=measure,
        read=read,
        requires=tuple(dict.fromkeys(name for probe in probes for name in probe.requires)),
        renew=renew,
        check=check,
        counter=lambda state, name: probes[owner[name]].counter(state.members[owner[name]], name),
    )
