"""The decays' factors against their formulas, and what a phase may be made of."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fgo_jax as fgo

FORMULAS = {
    "hyperbolic": lambda x: 1 / (1 + x),
    "inverse_sqrt": lambda x: (1 + x) ** -0.5,
    "linear": lambda x: 1 - min(x, 1),
    "one_minus_sqrt": lambda x: 1 - min(x, 1) ** 0.5,
    "cosine": lambda x: (1 + np.cos(np.pi * min(x, 1))) / 2,
    "exponential": lambda x: 100 ** -min(x, 1),
}
ENDLESS = ("hyperbolic", "inverse_sqrt")
START = 40


def progress(step, total_steps=None, exponent=0.0):
    return fgo.decays.Progress(
        jnp.int32(step), jnp.int32(START), total_steps, jnp.float32(exponent), False
    )


def factors(decay, steps, **options):
    return [float(decay.factor(progress(step, **options))) for step in steps]


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("options", "length"), [({"steps": 25}, 25), ({"ratio": 1.5}, 60)])
def test_a_factor_follows_its_formula(name, options, length):
    steps = range(0, 2 * length, 7)
    wanted = [FORMULAS[name](step / length) for step in steps]
    got = factors(getattr(fgo.decays, name)(**options), steps)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    floored = factors(getattr(fgo.decays, name)(**options, floor=0.3), steps)
    np.testing.assert_allclose(floored, np.maximum(wanted, 0.3), rtol=1e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_with_a_horizon_every_decay_ends_there(name):
    left = 60
    steps = range(0, left + 1, 5)
    line = [1 - step / left for step in steps]
    # Those without an end keep their length; the others take the steps that are left.
    if name in ENDLESS:
        wanted = np.minimum([FORMULAS[name](step / START) for step in steps], line)
    else:
        wanted = [FORMULAS[name](step / left) for step in steps]
    got = factors(getattr(fgo.decays, name)(), steps, total_steps=START + left)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_an_adaptive_decay_is_a_power_of_the_hyperbolic_one():
    steps = range(0, 100, 9)
    adaptive, hyperbolic = fgo.decays.adaptive(25), fgo.decays.hyperbolic(25)
    powered = np.asarray(factors(hyperbolic, steps)) ** 0.7
    np.testing.assert_allclose(factors(adaptive, steps, exponent=0.7), powered, rtol=1e-5)


WRONG = {
    "steps": (lambda: fgo.decays.cosine(0), "steps must be an integer >= 1"),
    "ratio": (lambda: fgo.decays.linear(ratio=-1.0), "ratio must be a finite number > 0"),
    "floor": (lambda: fgo.decays.hyperbolic(floor=1.0), r"floor must lie in \[0, 1\)"),
    "onset": (lambda: fgo.decays.adaptive(onset=-1.0), "onset must be a finite number >= 0"),
    "name instead of a decay": (
        lambda: fgo.execution(1e-3, decay="cosine"),
        r"must come from fgo\.decays",
    ),
    "adaptive without momentum": (
        lambda: fgo.execution(1e-3, decay=fgo.decays.adaptive()),
        "Give a positive slow_share",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_numbers_say_what_to_do(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_phase_is_a_description_that_cannot_be_changed():
    phase = fgo.acquisition(1e-3)
    assert not isinstance(phase, optax.GradientTransformation)
    with pytest.raises(AttributeError):
        phase.name = "another"
