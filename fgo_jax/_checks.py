"""Argument checks. Concrete values are checked; traced ones pass, since they have no value yet."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core


def number(value: Any) -> float | None:
    """The value as a float; NaN if it is not a number, None if it is a tracer."""
    if isinstance(value, core.Tracer):
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.number, np.ndarray, jax.Array)
    ):
        return math.nan
    return float(value) if np.ndim(value) == 0 else math.nan


def is_zero(value: Any) -> bool:
    """Whether a value is known, at trace time, to be zero."""
    return number(value) == 0


def is_off(option: Any) -> bool:
    """Whether an option is None or a zero of Python or NumPy, which no later step can change.

    A JAX array is not: `optax.inject_hyperparams` passes those, and their values may change.
    """
    return option is None or (isinstance(option, (int, float, np.number)) and option == 0)


def finite(name: str, value: Any) -> None:
    """Raises for what is not a finite number."""
    known = number(value)
    if known is not None and not math.isfinite(known):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")


def non_negative(name: str, value: Any) -> None:
    """Raises for what is not a finite number >= 0."""
    known = number(value)
    if known is not None and not (0.0 <= known < math.inf):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")


def positive(name: str, value: Any) -> None:
    """Raises for what is not a finite number > 0."""
    known = number(value)
    if known is not None and not (0.0 < known < math.inf):
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}.")


def fraction(name: str, value: Any) -> None:
    """Raises for what is not a number in [0, 1)."""
    known = number(value)
    if known is not None and not (0.0 <= known < 1.0):
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}.")


def share(name: str, value: Any) -> None:
    """Raises for what is not a number in (0, 1]."""
    known = number(value)
    if known is not None and not (0.0 < known <= 1.0):
        raise ValueError(f"{name} must lie in (0, 1], got {value!r}.")


def unit(name: str, value: Any) -> None:
    """Raises for what is not a number in [0, 1]."""
    known = number(value)
    if known is not None and not (0.0 <= known <= 1.0):
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


_LARGEST = 2**31 - 1


def integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raises for what is not an integer >= `minimum`. It may be traced: it shapes no array."""
    known = number(value)
    if known is not None and not (known >= minimum and known.is_integer()):
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}.")
    if known is not None and known > _LARGEST:
        raise ValueError(f"{name} must be at most {_LARGEST}, the largest int32, got {value!r}.")


def static(name: str, value: Any) -> None:
    """Raises for a tracer: the value shapes arrays or picks a formula."""
    if isinstance(value, core.Tracer):
        raise ValueError(
            f"{name} decides what is computed and cannot be traced: pass a Python value "
            "(under optax.inject_hyperparams, name it in static_args)."
        )


def positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """Raises for what is not a Python integer >= `minimum`: it shapes arrays."""
    static(name, value)
    integer(name, value, minimum)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises for what is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def average_dtype(name: str, dtype: Any) -> Any:
    """The dtype of averages in a state, or None."""
    if dtype is None:
        return None
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64, jnp.bfloat16):
        raise ValueError(
            f"{name} must be float32, float64 or bfloat16, got {jnp.dtype(dtype).name}: others "
            "do not hold averages of gradients."
        )
    return jnp.dtype(dtype)


def names(name: str, value: Any) -> None:
    """Raises for a string in place of a tuple: it would count as its letters."""
    if isinstance(value, str):
        raise ValueError(f"{name} must be a tuple of names: pass ({value!r},).")


def scalar(name: str, value: Any) -> None:
    """Raises if not a real scalar, traced or not."""
    is_number = isinstance(value, (int, float)) or hasattr(value, "dtype")
    if not is_number or jnp.iscomplexobj(value):
        kind = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{name} is of type {kind}: pass a real scalar, as in {name}.mean().")
    if shape := jnp.shape(value):
        raise ValueError(f"{name} has the shape {shape}: pass a scalar, as in {name}.mean().")


def own_state(owner: str, state: Any, kind: type) -> None:
    """Raises for another optimizer's state, or for no state."""
    if not isinstance(state, kind):
        raise ValueError(
            f"{owner} got a state of type {type(state).__name__}, not {kind.__name__}: call "
            "update(grads, state, params) in this order, with a state of this optimizer's init."
        )


def learning_rate(value: Any, name: str = "learning_rate") -> None:
    """Raises for what is neither a finite number >= 0 nor an optax schedule."""
    if not callable(value):
        non_negative(name, value)


def scheduled(name: str, value: Any) -> None:
    """Raises if a schedule returned an array: it would broadcast against the leaves."""
    if shape := jnp.shape(value):
        raise ValueError(
            f"{name} must be one number at each step, got the shape {shape}: return a scalar from "
            "the schedule."
        )


def function(name: str, value: Any, form: str) -> None:
    """Raises for non-functions, and for optax's losses: their signature differs."""
    if not callable(value):
        raise ValueError(
            f"{name} must be a function {form}, got {type(value).__name__}: check the order of "
            "the arguments."
        )
    inner = _innermost(value)
    if (getattr(inner, "__module__", None) or "").startswith("optax.losses"):
        raise ValueError(
            f"{name} must be a function {form}, but optax.{inner.__name__} takes outputs and "
            "labels: wrap it in a function that picks the labels out of the batch, such as "
            f"lambda outputs, batch: optax.{inner.__name__}(outputs, batch['label'])."
        )


def transform(name: str, value: Any) -> None:
    """Raises for what has no `init` and `update`."""
    if hasattr(value, "init") and hasattr(value, "update"):
        return
    got, advice = type(value).__name__, "such as optax.adam(1e-3)"
    if got == "Phase":
        advice = "put phases into fgo.phased([...], [...])"
    elif callable(value):
        advice = "call it, as in optax.adam(1e-3)"
    raise ValueError(f"{name} must be a gradient transformation, got {got}: {advice}.")


NEEDS_FLAX = "this needs Flax: run `pip install 'fgo_jax[flax]'`."


def linen() -> Any:
    """flax.linen; raises where it is not installed, saying how to get it."""
    try:
        import flax.linen as nn
    except ImportError as error:
        raise ImportError(NEEDS_FLAX) from error
    return nn


def _innermost(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    return value


def model(predict_fn: Any) -> None:
    """Raises if it is not a model, such as an operator of :mod:`fgo_jax.curvature`."""
    form = "(params, batch) -> outputs"
    function("predict_fn", predict_fn, form)
    inner = _innermost(predict_fn)
    made = "<locals>" in getattr(inner, "__qualname__", "")
    if made and (getattr(inner, "__module__", None) or "").startswith("fgo_jax.curvature."):
        raise ValueError(
            f"predict_fn must be the model, a function {form}, got what fgo_jax.curvature made of "
            "one: pass the model itself."
        )
