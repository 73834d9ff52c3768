"""The three phases with switch times that are given, for a table of the best ones."""

from benchmarks.methods.method import Method
from benchmarks.methods.three_phases import target_acquisition
from benchmarks.rival_triggers import at_steps


def _at_steps(task, hp):
    triggers = dict(zip(("acquisition", "reask"), at_steps(hp["first"], hp["second"]), strict=True))
    return target_acquisition(task, hp, triggers=triggers)


METHODS = (
    Method("fgo_at_steps", _at_steps, phased=True, cadence=10, note="is told when to switch"),
)
