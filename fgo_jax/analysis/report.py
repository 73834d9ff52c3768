"""The report that :func:`fgo_jax.spectrum` returns."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from fgo_jax import _checks
from fgo_jax.analysis.quadrature import Rule
from fgo_jax.linalg.operator import student_width
from fgo_jax.probes.probe import Estimate

# Bounds of the linear stretch, as shares of the largest eigenvalue. Below the first, float32
# products are rounding. Above the second, it would hide what a logarithmic axis shows.
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


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The spectrum of the diagonal block of one group of parameters.

    Attributes:
      dimension: number of parameters in the group.
      top_eigenvalue: the eigenvalue of the block that is largest in size. Its error is its
        residual.
      trace, participation_ratio: of the block, as in :class:`SpectrumReport`.
      noise_scale: of the group's gradients, in examples; None where no rows were given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
      >>> def operator(params, batch):
      ...     return lambda v: {"a": 2.0 * v["a"], "b": 5.0 * v["b"]}
      >>> groups = fgo.probes.layer_groups(params)
      >>> report = fgo.spectrum(operator, params, batch=0, groups=groups)
      >>> {name: round(float(part.trace.value), 3) for name, part in report.layers.items()}
      {'a': 6.0, 'b': 10.0}

    Source: the definition above.
    """

    dimension: int
    top_eigenvalue: Estimate
    trace: Estimate
    participation_ratio: Estimate
    noise_scale: Estimate | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class SpectrumReport:
    r"""The spectrum of a symmetric operator A. Printing it gives a table.

    Every `Estimate` is a value and its standard error: the spread over the random starts,
    widened to Student's t, and for figures of :math:`|\lambda|` also what the last third of
    the steps changed. It is infinite where the steps do not resolve the figure. The error of
    an eigenvalue is its residual |A v - value v| instead: within it there is an eigenvalue
    for certain. Sums of energy are over :math:`|\lambda|`, which is :math:`\lambda` for a
    positive semi-definite operator.

    Attributes:
      eigenvalues: [k], the largest in size first. Negative ones keep their sign.
      residuals: [k], |A v - eigenvalue v|, measured by one more product.
      eigenvectors: orthonormal, shaped like the parameters with leaves [k, *leaf.shape].
      complete: False where another eigenvalue was seen in the range of those listed, such
        as a copy of a multiple one: take a larger ``block_size`` or more steps. True is no
        proof, since the starts see only what their steps resolve.
      dimension: d, number of parameters in the leaves that the operator acts on.
      top_eigenvalue, lowest_eigenvalue: the largest and the smallest one, with their signs.
      trace, trace_square: of A and of A squared.
      participation_ratio: :math:`(\sum |\lambda|)^2 / \sum \lambda^2`.
      energy_rank, energy_fraction: the fewest eigenvalues that hold ``energy`` of
        :math:`\sum |\lambda|`, and their share of d.
      negative_share: :math:`\sum \max(-\lambda, 0) / \sum |\lambda|`.
      noise_scale: the batch size, in examples, at which the noise of the mean gradient
        equals its size. None where no rows were given. Its error is infinite where the mean
        gradient is not distinguishable from zero.
      energy: the share that was asked for.
      rule: ``nodes`` and ``weights`` of the quadrature, for any other sum over the spectrum.
      short_rule: the same from the first two thirds of the steps. A sum that differs much
        between the two rules is not resolved. None for runs too short to cut.
      layers: :class:`LayerReport` by the name of the group; empty without groups.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> values = jnp.array([4.0, 1.0])
      >>> report = fgo.spectrum(lambda params, batch: lambda v: values * v, jnp.zeros(2), 0)
      >>> float(report.trace.value.round(3)), report.complete
      (5.0, True)
      >>> root = (report.rule.weights * report.rule.nodes**0.5).sum()  # trace of A^(1/2)
      >>> round(float(root), 3)
      3.0

    Source: Golub and Meurant (2010), "Matrices, moments and quadrature"; Ghorbani et al.
    (2019).
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
    short_rule: Rule | None
    layers: dict[str, LayerReport]

    def eigenvector(self, index: int) -> Any:
        """One eigenvector.

        Args:
          index: its place in ``eigenvalues``.

        Returns:
          A pytree like the parameters, float32, of length 1.

        Raises:
          Nothing of its own; out of range JAX gives the last one.

        Example:
          >>> import jax.numpy as jnp
          >>> import fgo_jax as fgo
          >>> values = jnp.array([4.0, 1.0])
          >>> report = fgo.spectrum(lambda params, batch: lambda v: values * v, jnp.zeros(2), 0)
          >>> abs(report.eigenvector(1)).round(3).tolist()
          [0.0, 1.0]

        Source: the definition above.
        """
        return jax.tree.map(lambda leaf: leaf[index], self.eigenvectors)

    def density(
        self, points: int = 500, *, width: float = 0.1, linear_width: float | None = None
    ) -> Density:
        r"""The number of eigenvalues per unit and per decade, smoothed.

        .. math:: \rho(y) = \sum_j w_j\, \mathcal N(y \mid y_j, s^2),
                  \qquad y = \mathrm{asinh}(\lambda / w)

        with the nodes and weights :math:`w_j` of the quadrature. Spectra span decades and may
        change sign; y is logarithmic beyond w and linear within.

        Args:
          points: of the grid, at least 2.
          width: standard deviation s of the kernel, in decades.
          linear_width: w, in the unit of the eigenvalues. None takes what the steps resolve
            at zero: twice the gap between Ritz values there, within 1e-5 to 1e-2 of the
            largest eigenvalue. A smaller one shows the single Ritz values of an unresolved
            bulk.

        Returns:
          A :class:`Density`; its integral over the grid is ``dimension``.

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

        Source: Ghorbani et al. (2019), section 2, with a kernel of constant width in decades.
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
        if np.max(self.rule.nodes) < largest:  # then the largest in size is negative
            ends[1] = max(np.arcsinh(np.max(self.rule.nodes) / linear_width), 0.0)
        y = np.linspace(ends[0] - 5 * spread, ends[1] + 5 * spread, points)

        def smooth(nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
            gaps = (y[:, None] - np.arcsinh(nodes / linear_width)[None, :]) / spread
            return np.exp(-0.5 * np.square(gaps)) @ weights / (spread * (2 * np.pi) ** 0.5)

        n = self.rule.num_starts
        each = np.stack([smooth(*self.rule.of_start(start)) for start in range(n)])
        per_unit_y = np.mean(each, axis=0)
        errors = student_width(n - 1) * np.std(each, axis=0, ddof=1) / n**0.5
        if self.short_rule is None:
            errors = np.full_like(errors, np.inf)
        else:
            short = smooth(self.short_rule.nodes, self.short_rule.weights)
            errors = np.hypot(errors, per_unit_y - short)
        return Density(
            eigenvalues=linear_width * np.sinh(y),
            values=per_unit_y / (linear_width * np.cosh(y)),
            per_decade=decade * per_unit_y,
            per_decade_errors=decade * errors,
            linear_width=float(linear_width),
        )

    def _gap_at_zero(self) -> float:
        """Gap between the Ritz value nearest zero and the next one; median over the starts."""
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
    if np.isinf(estimate.error):
        return f"{float(estimate.value):.4g} (unresolved)"
    return f"{float(estimate.value):.4g} +- {float(estimate.error):.2g}"
