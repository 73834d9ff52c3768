"""The three phases with switch times that are given, for a table of the best ones."""

from __future__ import annotations

from benchmarks.methods.method import Method
from benchmarks.methods.protocol import target_acquisition


def _at_steps(task, hp):
    from benchmarks import rival_triggers as rivals

    hp = dict(hp)
    first, second = rivals.at_steps(hp.pop("first"), hp.pop("second"))
    return target_acquisition(task, hp, acquisition_trigger=first, reask_trigger=second)


METHODS = (
    Method(
        "fgo_at_steps",
        _at_steps,
        phased=True,
        cadence=10,
        note="is told when to switch",
    ),
)
