"""The density of a spectrum, smoothed on an axis that is logarithmic on both sides of zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fgo_jax import _checks
from fgo_jax.analysis.quadrature import Rule
from fgo_jax.linalg.operator import student_width

# Bounds of the linear stretch, as shares of the largest eigenvalue. Below the first, float32
# products are rounding. Above the second, it would hide whole decades.
_LINEAR_SHARES = 1e-5, 1e-2


class Density(NamedTuple):
    """A smoothed spectral density on a grid that is dense around zero.

    Attributes:
      eigenvalues: [n], ascending.
      values: [n], eigenvalues per unit of eigenvalue. The integral is the dimension.
      per_decade: [n], eigenvalues per factor of ten; not meaningful near zero.
      per_decade_errors: [n], standard errors of these: the spread over the starts, and what
        the last third of the steps changed.
      linear_width: within this distance of zero the grid is linear, beyond it logarithmic.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> values = jnp.array([9.0, 1.0, 1.0, 0.1])
      >>> report = fgo.spectrum(lambda params, batch: lambda v: values * v, jnp.zeros(4), 0)
      >>> report.density(points=100).per_decade.shape
      (100,)

    Source: Ghorbani et al. (2019), section 2.
    """

    eigenvalues: np.ndarray
    values: np.ndarray
    per_decade: np.ndarray
    per_decade_errors: np.ndarray
    linear_width: float


def smoothed(
    rule: Rule, short: Rule | None, points: int, width: float, linear_width: float | None
) -> Density:
    """The density of :meth:`fgo_jax.SpectrumReport.density`, from its rules."""
    _checks.positive_int("points", points, 2)
    _checks.positive("width", width)
    largest = float(np.max(np.abs(rule.nodes), initial=0.0))
    low, high = _LINEAR_SHARES
    if linear_width is None:
        linear_width = float(np.clip(2.0 * _gap_at_zero(rule), low * largest, high * largest))
    if largest == 0.0:
        raise ValueError(
            "the operator is zero here, so there is no density to draw: check the batch "
            "and that the loss depends on the parameters."
        )
    _checks.positive("linear_width", linear_width)
    decade = np.log(10.0)
    spread = decade * width
    # A kernel around a small positive eigenvalue reaches below zero. If no eigenvalue is
    # negative beyond rounding, that part is reflected at zero.
    lowest, highest = np.min(rule.nodes), np.max(rule.nodes)
    below, above = lowest < -low * largest, highest > low * largest
    bottom = np.arcsinh(lowest / linear_width) - 5 * spread if below else 0.0
    top = np.arcsinh(highest / linear_width) + 5 * spread if above else 0.0
    needed = int(np.ceil((top - bottom) / (1.5 * spread))) + 1
    if points < needed:
        raise ValueError(
            f"points={points} are too far apart for a kernel of width={width} decades: pass "
            f"points= of at least {needed}, or a larger width=."
        )
    y = np.linspace(bottom, top, points)

    def smooth(nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        at = np.arcsinh(nodes / linear_width)[None, :]
        kernel = np.exp(-0.5 * np.square((y[:, None] - at) / spread))
        if not (below and above):
            kernel += np.exp(-0.5 * np.square((y[:, None] + at) / spread))
        return kernel @ weights / (spread * (2 * np.pi) ** 0.5)

    n = rule.num_starts
    each = np.stack([smooth(*rule.of_start(start)) for start in range(n)])
    per_unit_y = np.mean(each, axis=0)
    errors = student_width(n - 1) * np.std(each, axis=0, ddof=1) / n**0.5
    if short is None:
        errors = np.full_like(errors, np.inf)
    else:
        errors = np.hypot(errors, per_unit_y - smooth(short.nodes, short.weights))
    return Density(
        eigenvalues=linear_width * np.sinh(y),
        values=per_unit_y / (linear_width * np.cosh(y)),
        per_decade=decade * per_unit_y,
        per_decade_errors=decade * errors,
        linear_width=float(linear_width),
    )


def _gap_at_zero(rule: Rule) -> float:
    """Gap between the Ritz value nearest zero and the next one; median over the starts."""
    gaps = []
    for start in range(rule.num_starts):
        nodes = np.sort(rule.nodes[rule.starts == start])
        if len(nodes) > 1:
            nearest = int(np.argmin(np.abs(nodes)))
            beside = nodes[max(nearest - 1, 0) : nearest + 2]
            gaps.append(np.max(np.diff(beside)))
    return float(np.median(gaps)) if gaps else 0.0
