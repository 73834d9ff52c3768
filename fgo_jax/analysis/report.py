"""What :func:`fgo_jax.spectrum` returns."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from fgo_jax import _checks
from fgo_jax.analysis.quadrature import Rule
from fgo_jax.linalg.operator import student_width
from fgo_jax.probes.probe import Estimate

# Shares of the largest eigenvalue: below the first, float32 products are rounding; above
# the second, a linear stretch would hide what a logarithmic axis is there to show.
_LINEAR_SHARES = 1e-5, 1e-2


class Density(NamedTuple):
    """A smoothed spectral density on a grid, which is dense around zero."""

    eigenvalues: np.ndarray  # [n], ascending
    values: np.ndarray  # [n]; eigenvalues per unit of eigenvalue; the integral is d
    per_decade: np.ndarray  # [n]; eigenvalues per factor of ten, away from zero
    per_decade_errors: np.ndarray  # [n]; standard errors over the starts
    linear_width: float  # around zero, where the axis is linear and not logarithmic


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The diagonal block of one group of parameters.

    Attributes:
      dimension: parameters of the group.
      top_eigenvalue: the block's largest in size; the error is its residual.
      trace, participation_ratio: of the block, as in :class:`SpectrumReport`.
      noise_scale: of the group's gradients; None where no rows were given.
    """

    dimension: int
    top_eigenvalue: Estimate
    trace: Estimate
    participation_ratio: Estimate
    noise_scale: Estimate | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class SpectrumReport:
    r"""The spectrum of a symmetric operator A. Printed, it is a table.

    Every `Estimate` is a value and its standard error over the random starts, widened to
    Student's t. Only for eigenvalues it is the residual |A v - value v|: so near to the
    value there is an eigenvalue for certain. Sums of energy are over :math:`|\lambda|`, which
    for a positive semi-definite operator is :math:`\lambda`.

    Attributes:
      eigenvalues: [k], the largest in size first; negative ones keep their sign.
      residuals: [k], |A v - eigenvalue v|, measured by one more product.
      eigenvectors: leaves [k, *leaf.shape], orthonormal, shaped like the parameters.
      complete: False where another eigenvalue in the range of those listed was seen, such
        as a copy of a multiple one: take a larger ``block_size`` or more steps. True is no
        proof, for each start sees what its steps resolve.
      dimension: d, parameters of the leaves that the operator acts on.
      top_eigenvalue, lowest_eigenvalue: algebraically.
      trace, trace_square: of A and of A squared.
      participation_ratio: :math:`(\sum |\lambda|)^2 / \sum \lambda^2`.
      energy_rank, energy_fraction: fewest eigenvalues that hold ``energy`` of
        :math:`\sum |\lambda|`, and their share of d.
      negative_share: :math:`\sum \max(-\lambda, 0) / \sum |\lambda|`.
      noise_scale: examples per batch at which gradient noise and signal are equal; None
        where no rows were given, and with an infinite error where the signal is not seen.
      energy: the share asked for.
      rule: nodes and weights of the quadrature, for any other sum over the spectrum.
      layers: by the name of the group; empty where no groups were given.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    eigenvectors: Any
    complete: bool
    dimension: int
    top_eigenvalue: Estimate
    lowest_eigenvalue: Estimate
    trace: Estimate
    trace_square: Estimate
    participation_ratio: Estimate
    energy_rank: Estimate
    energy_fraction: Estimate
    negative_share: Estimate
    noise_scale: Estimate | None
    energy: float
    rule: Rule
    layers: dict[str, LayerReport]

    def eigenvector(self, index: int) -> Any:
        """One eigenvector, shaped like the parameters."""
        return jax.tree.map(lambda leaf: leaf[index], self.eigenvectors)

    def density(
        self, points: int = 500, width: float = 0.1, linear_width: float | None = None
    ) -> Density:
        r"""The number of eigenvalues per unit and per decade, smoothed.

        Spectra span decades and may change sign, so the kernel is a Gaussian in
        :math:`y = \mathrm{asinh}(\lambda / w)`: logarithmic beyond w, linear within.

        Args:
          points: of the grid, at least 2.
          width: standard deviation of the kernel, in decades.
          linear_width: w, in the unit of the eigenvalues; None for what the steps resolve at
            zero, twice the gap between Ritz values there, within 1e-5 to 1e-2 of the
            largest. A smaller one draws the single Ritz values of an unresolved bulk.

        Returns:
          a :class:`Density`; its integral over the grid is ``dimension``.

        Raises:
          ValueError: for numbers that are not positive, or an operator that is zero.

        Example:
          >>> import numpy as np, jax.numpy as jnp
          >>> import fgo_jax as fgo
          >>> values = jnp.array([9.0, 1.0, 1.0, 0.1])
          >>> report = fgo.spectrum(lambda params, batch: lambda v: values * v, jnp.zeros(4), 0)
          >>> density = report.density()
          >>> round(float(np.trapezoid(density.values, density.eigenvalues)), 2)
          4.0

        Source: Ghorbani et al. (2019), section 2, with a kernel of even width in decades.
        """
        _checks.positive_int("points", points, 2)
        _checks.positive("width", width)
        largest = float(np.max(np.abs(self.rule.nodes), initial=0.0))
        if linear_width is None:
            low, high = _LINEAR_SHARES
            linear_width = float(np.clip(2.0 * self._gap_at_zero(), low * largest, high * largest))
        if largest == 0.0:
            raise ValueError(
                "the operator is zero here, so there is no density to draw: check the batch "
                "and that the loss depends on the parameters."
            )
        _checks.positive("linear_width", linear_width)
        decade = np.log(10.0)
        spread = decade * width
        ends = np.arcsinh(np.array([min(np.min(self.rule.nodes), 0.0), largest]) / linear_width)
        if np.max(self.rule.nodes) < largest:  # the largest in size is negative
            ends[1] = max(np.arcsinh(np.max(self.rule.nodes) / linear_width), 0.0)
        y = np.linspace(ends[0] - 5 * spread, ends[1] + 5 * spread, points)

        def smooth(nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
            gaps = (y[:, None] - np.arcsinh(nodes / linear_width)[None, :]) / spread
            return np.exp(-0.5 * np.square(gaps)) @ weights / (spread * (2 * np.pi) ** 0.5)

        n = self.rule.num_starts
        each = np.stack([smooth(*self.rule.of_start(start)) for start in range(n)])
        errors = student_width(n - 1) * np.std(each, axis=0, ddof=1) / n**0.5
        per_unit_y = np.mean(each, axis=0)
        return Density(
            eigenvalues=linear_width * np.sinh(y),
            values=per_unit_y / (linear_width * np.cosh(y)),
            per_decade=decade * per_unit_y,
            per_decade_errors=decade * errors,
            linear_width=float(linear_width),
        )

    def _gap_at_zero(self) -> float:
        """Between the Ritz value nearest zero and the next one, the median over the starts."""
        gaps = []
        for start in range(self.rule.num_starts):
            nodes = np.sort(self.rule.nodes[self.rule.starts == start])
            if len(nodes) > 1:
                nearest = int(np.argmin(np.abs(nodes)))
                beside = nodes[max(nearest - 1, 0) : nearest + 2]
                gaps.append(np.max(np.diff(beside)))
        return float(np.median(gaps)) if gaps else 0.0

    def __str__(self) -> str:
        rows = [("dimension", f"{self.dimension}")]
        for name in (
            "top_eigenvalue",
            "lowest_eigenvalue",
            "trace",
            "trace_square",
            "participation_ratio",
            "energy_rank",
            "energy_fraction",
            "negative_share",
            "noise_scale",
        ):
            estimate = getattr(self, name)
            if estimate is not None:
                label = f"{name} ({self.energy:g})" if name == "energy_rank" else name
                rows.append((label, _number(estimate)))
        listed = "" if self.complete else "  (not complete)"
        rows.append(("eigenvalues", " ".join(f"{x:.3g}" for x in self.eigenvalues) + listed))
        lines = [f"{name:<22}{text}" for name, text in rows]
        if self.layers:
            names = ("trace", "participation_ratio", "top_eigenvalue")
            lines += ["", "layer".ljust(22) + "dimension   " + "".join(f"{n:<28}" for n in names)]
            for layer, part in self.layers.items():
                numbers = "".join(f"{_number(getattr(part, name)):<28}" for name in names)
                lines.append(f"{layer:<22}{part.dimension:<12}{numbers}")
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def _number(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "not told from noise"
    return f"{float(estimate.value):.4g} +- {float(estimate.error):.2g}"
