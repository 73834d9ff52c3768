"""What the phases of a run meet, drawn by hypothesis: numbers, streams, and acts by hand."""

import dataclasses
import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests import streams
from tests.controller.phased_runs import SIZE
from tests.streams import STEPS


def numbers():
    """A strategy for the numbers of an optimizer; every one is traced."""
    steps = functools.partial(st.integers, 0)
    return st.fixed_dictionaries(
        {
            "rate": st.sampled_from((0.0, 1e-3, 0.1, 1.0)),
            "warmup": steps(30),
            "handover": st.integers(1, 12),
            "minima": st.tuples(*[steps(12)] * 4),
            "after": steps(25),
            "total": st.integers(30, 120),
            "decay": st.sampled_from((0.0, 0.1)),
            "clip": st.sampled_from((1e-6, 1.0, 1e30)),
            "window": st.sampled_from((0.0, 0.1, 1.0)),
            "share": st.sampled_from((0.1, 0.5, 0.9)),
            "cut": st.sampled_from((0.0, 0.5, 0.9)),
        }
    )


@dataclasses.dataclass(frozen=True)
class Example:
    """The numbers of an optimizer, the streams that it meets, and what is done to it by hand."""

    numbers: dict[str, Any]
    gradients: list[streams.Segment]
    losses: list[streams.Segment]
    validations: list[streams.Segment]
    every: int  # steps from one validation to the next
    acts: dict[int, int]  # step -> -2: restart, 0 and more: force that phase

    def inputs(self):
        """What the program reads at each step: [STEPS, ...] each."""
        step = np.arange(STEPS)
        validations = streams.series(self.validations)
        acts = [self.acts.get(number, -1) for number in step]
        return {
            "step": step.astype(np.int32),
            "grads": streams.rows(self.gradients, SIZE),
            "value": streams.series(self.losses),
            "validation": np.where(step % self.every == 0, validations, np.float32(np.nan)),
            "act": np.asarray(acts, np.int32),
        }


@functools.cache  # hypothesis checks a strategy once, and a new one again
def examples(phases):
    """A strategy for examples of an optimizer with so many phases."""
    acts = st.dictionaries(
        st.integers(0, STEPS - 1), st.sampled_from((-2, *range(phases))), max_size=4
    )
    return st.builds(
        Example,
        numbers(),
        streams.any_segments(),
        streams.any_segments(),
        streams.any_segments(),
        st.integers(1, 4),
        acts,
    )
