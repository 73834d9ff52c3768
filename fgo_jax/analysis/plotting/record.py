"""A run's telemetry over its steps, checked, and the stretches of its phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CAUSES = {1: "its trigger held", 2: "deadline", 3: "by hand"}
_NEEDED = {"phase", "total_step", "learning_rate"}


class Stretch(NamedTuple):
    """A phase from one step to another; a run may enter a phase more than once."""

    phase: str
    begin: float
    end: float
    cause: str  # empty for the phase that the record begins in


class Record(NamedTuple):
    """What is drawn."""

    steps: np.ndarray  # [n], ascending; updates made, continued after a restart
    numbers: dict[str, np.ndarray]  # [n], float64, by the names of telemetry
    stretches: list[Stretch]


def read(telemetry: Any) -> Record:
    """The record of one run; raises for anything else."""
    numbers = _stacked(telemetry)
    steps = np.array(numbers["total_step"])
    restarts = np.flatnonzero(np.diff(steps) < 0) + 1
    for index in restarts:
        steps[index:] += numbers["total_step"][index - 1]
    return Record(steps, numbers, _stretches(numbers, steps))


def _stacked(telemetry: Any) -> dict[str, np.ndarray]:
    if isinstance(telemetry, Sequence) and telemetry and isinstance(telemetry[0], Mapping):
        for number, one in enumerate(telemetry):
            if odd := set(one) ^ set(telemetry[0]):
                raise ValueError(
                    f"record {number} of the telemetry and record 0 do not both have "
                    f"{min(odd)!r}: pass what fgo.telemetry returned, with NaN for a number that "
                    "is not known at every step."
                )
        telemetry = {name: [one[name] for one in telemetry] for name in telemetry[0]}
    if not isinstance(telemetry, Mapping):
        raise ValueError(
            "this draws what fgo.telemetry returned at every step, as a dict of arrays or a list "
            f"of dicts, got {type(telemetry).__name__}."
        )
    paths = {name.removesuffix("/total_step") for name in telemetry if name.endswith("/total_step")}
    if paths:
        path = min(paths)
        raise ValueError(
            f"the telemetry is of several optimizers ({', '.join(sorted(paths))}): pass that of "
            f"one, as in {{name.removeprefix({f'{path}/'!r}): x for name, x in telemetry.items() "
            f"if name.startswith({f'{path}/'!r})}}."
        )
    if missing := sorted(_NEEDED - set(telemetry)):
        raise ValueError(f"the telemetry lacks {', '.join(missing)}: pass all of fgo.telemetry.")
    numbers = {name: np.asarray(values, np.float64) for name, values in telemetry.items()}
    (shape, *others) = {values.shape for values in numbers.values()}
    if others or len(shape) > 1:
        raise ValueError(
            f"every number must be an array over the steps of one run, got shapes "
            f"{sorted({shape, *others})}: of several runs pass one, as in "
            "jax.tree.map(lambda x: x[:, 0], telemetry)."
        )
    if not shape or shape[0] < 2:
        raise ValueError(
            "a picture needs two steps or more: return fgo.telemetry(state) from the body of "
            "jax.lax.scan, or append it to a list at every step or every few."
        )
    return numbers


def _stretches(numbers: dict[str, np.ndarray], steps: np.ndarray) -> list[Stretch]:
    """The phases in the order of the run.

    A record that went through `jax.jit` has its names in alphabetical order, so a phase's index
    does not give its name. The running phase is the one that began last.
    """
    names = [name.removeprefix("started/") for name in numbers if name.startswith("started/")]
    if not names:
        return [Stretch("", steps[0], steps[-1], "")]
    started = np.stack([numbers[f"started/{name}"] for name in names])
    running = np.argmax(started, axis=0)
    since = np.max(started, axis=0) + steps - numbers["total_step"]  # on the axis of `steps`
    changes = np.flatnonzero((np.diff(running) != 0) | (np.diff(since) != 0)) + 1
    found = []
    for index in (0, *changes):
        name = names[running[index]]
        cause = CAUSES.get(int(numbers[f"cause/{name}"][index]), "") if index else ""
        begin = np.clip(since[index], steps[index - 1], steps[index]) if index else steps[0]
        restarted = index and numbers["total_step"][index] < numbers["total_step"][index - 1]
        found.append((name, float(begin), "restart" if restarted else cause))
    ends = [begin for _, begin, _ in found[1:]] + [float(steps[-1])]
    pairs = zip(found, ends, strict=True)
    return [Stretch(name, begin, end, cause) for (name, begin, cause), end in pairs]
