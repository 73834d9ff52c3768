"""Argument checks: strict where a value is concrete, silent where it is traced."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import core


def _number(value: Any) -> float | None:
    """The value as a float; None where it is a tracer and cannot be read."""
    if isinstance(value, core.Tracer):
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.number, np.ndarray, jax.Array)
    ):
        return math.nan
    return float(value) if np.ndim(value) == 0 else math.nan


def is_zero(value: Any) -> bool:
    """Whether a number is known to be zero."""
    return _number(value) == 0


def non_negative(name: str, value: Any) -> None:
    number = _number(value)
    if number is not None and not (0.0 <= number < math.inf):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")


def positive(name: str, value: Any) -> None:
    number = _number(value)
    if number is not None and not (0.0 < number < math.inf):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}.")


def fraction(name: str, value: Any) -> None:
    number = _number(value)
    if number is not None and not (0.0 <= number < 1.0):
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")


def unit(name: str, value: Any) -> None:
    number = _number(value)
    if number is not None and not (0.0 <= number <= 1.0):
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def integer(name: str, value: Any, minimum: int = 1) -> None:
    """An integer that may be traced (it shapes nothing)."""
    number = _number(value)
    if number is not None and not (number >= minimum and number == int(number)):
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}.")


def static(name: str, value: Any) -> None:
    """What shapes arrays or picks a formula, hence a Python value."""
    if isinstance(value, core.Tracer):
        raise ValueError(
            f"{name} decides what is computed and cannot be traced: pass a Python value "
            "(under optax.inject_hyperparams, name it in static_args)."
        )


def positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """An integer that shapes arrays, hence a Python one."""
    static(name, value)
    integer(name, value, minimum)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def learning_rate(value: Any, name: str = "learning_rate") -> None:
    """A rate may be a number or an optax schedule."""
    if not callable(value):
        non_negative(name, value)
