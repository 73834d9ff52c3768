"""Streams of numbers that a run may meet, drawn by hypothesis: segments of a kind and a scale."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

STEPS = 64

# (random generator, steps, width) -> [steps, width], in units of the scale.
KINDS = {
    "noise": lambda rng, n, k: rng.normal(size=(n, k)),
    "noise around a mean": lambda rng, n, k: rng.normal(size=k) + 0.3 * rng.normal(size=(n, k)),
    "constant": lambda rng, n, k: np.tile(rng.normal(size=k), (n, 1)),
    "zero": lambda rng, n, k: np.zeros((n, k)),
    "sawtooth": lambda rng, n, k: np.outer((-1.0) ** np.arange(n), rng.normal(size=k)),
    "ramp": lambda rng, n, k: np.outer(np.arange(1.0, n + 1), rng.normal(size=k)),
    "collapse": lambda rng, n, k: np.outer(0.1 ** np.arange(n), rng.normal(size=k)),
    "negative": lambda rng, n, k: -np.abs(rng.normal(size=(n, k))),
    "one entry": lambda rng, n, k: rng.normal(size=(n, k)) * (np.arange(k) == rng.integers(k)),
}
# A single entry of these is that number, whatever the scale.
SPOILT = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
ORDINARY = (1e-3, 1.0, 1.0, 1.0, 30.0)
EXTREME = (1e-45, 1e-40, 1e-30, 1e-20, 1e-10, 1e10, 1e15, 3e17, 1e19, 1e30, 3e38)


@dataclasses.dataclass(frozen=True)
class Segment:
    kind: str
    steps: int
    scale: float
    seed: int

    def rows(self, width):
        rng = np.random.default_rng(self.seed)
        rows = self.scale * KINDS.get(self.kind, KINDS["noise"])(rng, self.steps, width)
        if self.kind in SPOILT:
            rows[np.arange(self.steps), rng.integers(width, size=self.steps)] = SPOILT[self.kind]
        return rows


def rows(segments, width):
    """[STEPS, width], float32: the segments one after the other, again and again."""
    whole = np.concatenate([segment.rows(width) for segment in segments])
    with np.errstate(over="ignore"):
        return np.resize(whole, (STEPS, width)).astype(np.float32)


def series(segments):
    """[STEPS], float32."""
    return rows(segments, 1)[:, 0]


def segments(kinds=(*KINDS, *SPOILT), scales=(*ORDINARY, *EXTREME), most=5):
    """A strategy for lists of segments."""
    one = st.builds(
        Segment,
        st.sampled_from(kinds),
        st.integers(1, STEPS // 2),
        st.sampled_from(scales),
        st.integers(0, 2**16),
    )
    return st.lists(one, min_size=1, max_size=most)


def calm(most=3):
    """Segments without what spoils a step, of ordinary scales."""
    return segments(tuple(KINDS), ORDINARY, most)


def any_segments():
    """Half of the streams are calm: the phases of the others rarely end by a measurement."""
    return st.one_of(calm(), segments())
