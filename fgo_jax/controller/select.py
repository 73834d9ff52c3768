"""A scalar chosen by the phase or the transform that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def select(index: jax.Array, cases: Sequence[Any]) -> jax.Array:
    """One of some scalars; a constant where all are the same number.

    An indexed array would be clamped, stacked and sliced at every step.
    """
    if all(isinstance(case, (bool, int, np.bool_)) and case == cases[0] for case in cases):
        return jnp.asarray(cases[0])
    return jax.lax.select_n(index, *map(jnp.asarray, cases))
