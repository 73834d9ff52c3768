"""The clock of a run of phases, in plain Python: what the documentation of `phased` says."""

import dataclasses

import numpy as np

from fgo_jax.controller.state import AT_START, BY_DEADLINE, BY_HAND, BY_TRIGGER, NOT_BEGUN

RESTART, NOTHING = -2, -1


@dataclasses.dataclass
class Model:
    """The rules that decide, and the fields of the clock that they move."""

    minima: tuple[int, ...]
    limits: tuple[float, ...]  # total_step at which each phase but the last ends; inf: never
    transform_of: tuple[int, ...]
    handover_steps: int

    def __post_init__(self):
        self.requested_phase = -1
        self.begin()

    def begin(self):
        count = len(self.minima)
        self.total_step = self.phase = self.phase_step = 0
        self.driver = self.driver_since = self.handover_left = 0
        self.requested_phase = -1
        self.stop_flag = self.grafted = False
        self.started = [0] + [-1] * (count - 1)
        self.causes = [AT_START] + [NOT_BEGUN] * (count - 1)

    def act(self, act):
        if act == RESTART:
            self.begin()
        elif act != NOTHING:
            self.requested_phase, self.stop_flag = act, False

    def update(self, verdict):
        """A step that is taken, with the verdict of the running phase's trigger."""
        last = self.phase == len(self.minima) - 1
        looks = self.handover_left == 0
        held = looks and verdict == 1 and self.phase_step + 1 >= self.minima[self.phase]
        by_hand = self.causes[self.phase] == BY_HAND
        wanted = by_hand and self.started[self.phase] >= self.limits[self.phase]
        self.total_step += 1
        self.phase_step += 1
        self.handover_left = max(self.handover_left - 1, 0)
        before = self.transform_of[self.driver]
        entered = False
        if self.requested_phase >= 0:
            entered = self.enter(self.requested_phase, BY_HAND)
        elif held and not last:
            entered = self.enter(self.phase + 1, BY_TRIGGER)
        elif looks and not (last or wanted) and self.total_step >= self.limits[self.phase]:
            entered = self.enter(self.phase + 1, BY_DEADLINE)
        elif held:
            self.stop_flag = True
        if self.handover_left == 0:
            self.driver = self.phase
        if self.transform_of[self.driver] != before:
            self.driver_since, self.grafted = self.total_step, not entered

    def enter(self, phase, cause):
        self.phase, self.phase_step, self.requested_phase = phase, 0, -1
        self.stop_flag = False
        self.started[phase], self.causes[phase] = self.total_step, cause
        # Backwards, or with the same transform, nothing has to fill.
        other = self.transform_of[phase] != self.transform_of[self.driver]
        self.handover_left = self.handover_steps if phase > self.driver and other else 0
        return True


def limits(shares, total, phases):
    """In float32, as the decisions are."""
    if not shares:
        return (np.inf,) * phases
    return (*(np.float32(total) * np.float32(share) for share in shares), np.inf)
