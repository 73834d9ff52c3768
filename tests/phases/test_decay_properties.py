"""Every decay at any moment of any run: finite, between its floor and one, never rising."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fgo_jax as fgo

NAMES = (
    "adaptive", "hyperbolic", "inverse_sqrt", "linear", "one_minus_sqrt", "cosine", "exponential",
)  # fmt: skip
ENDLESS = NAMES[:3]
LONGEST = 2**31 - 1
steps = st.one_of(st.integers(0, 200), st.integers(0, LONGEST))


@functools.cache
def program(name, own_length, horizon):
    """The factors at some steps of a phase, for traced numbers."""

    def factors(n, phase_steps):
        length = {"steps": n["length"]} if own_length else {"ratio": n["ratio"]}
        decay = getattr(fgo.decays, name)(floor=n["floor"], **length)
        total = n["total"] if horizon else None

        def one(step):
            progress = fgo.decays.Progress(
                step, n["start"], total, n["exponent"], False, n["earliest"]
            )
            return decay.factor(progress)

        return jax.vmap(one)(phase_steps)

    return jax.jit(factors)


numbers = st.fixed_dictionaries(
    {
        "length": st.integers(1, LONGEST),
        "ratio": st.sampled_from((1e-3, 0.5, 1.0, 1e4)),
        "floor": st.sampled_from((0.0, 0.01, 0.9)),
        "start": steps,
        "total": st.integers(1, LONGEST),
        "exponent": st.sampled_from((0.0, 0.3, 1.0)),
        "earliest": st.sampled_from((1.0, 40.0, 1e6)),
    }
)


@pytest.mark.parametrize("name", NAMES)
@given(
    n=numbers,
    own_length=st.booleans(),
    horizon=st.booleans(),
    at=st.lists(steps, min_size=8, max_size=8),
)
def test_a_decay_falls_from_one_to_its_floor(name, n, own_length, horizon, at):
    at = np.sort([0, *at]).astype(np.int32)
    factors = np.asarray(program(name, own_length, horizon)(n, at))
    floor = np.float32(n["floor"])
    assert factors[0] == 1
    assert ((factors >= floor) & (factors <= 1)).all()
    # Rounding of the exponential and logarithm.
    assert (np.diff(factors) <= 1e-6).all()
    if horizon:
        # All of it in float32.
        left = max(np.float32(n["total"]) - np.float32(n["start"]), np.float32(1.0))
        gone = at.astype(np.float32) / left
        if own_length or name in ENDLESS:  # under the line that ends at the horizon
            assert (factors <= np.maximum(1 - gone, floor) + 1e-6).all()
        else:  # the steps that are left are its length; an exponential ends at a hundredth
            last = 0.01 if name == "exponential" else 0.0
            assert (factors[gone >= 1] <= max(floor, last) + 1e-6).all()
