"""The report that :func:`fgo_jax.spectrum` returns."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from fgo_jax.analysis.density import Density, smoothed
from fgo_jax.analysis.quadrature import Rule
from fgo_jax.probes.probe import Estimate

_FIGURES = (
    "top_eigenvalue",
    "lowest_eigenvalue",
    "trace",
    "trace_square",
    "participation_ratio",
    "energy_rank",
    "energy_fraction",
    "negative_share",
    "noise_scale",
)


class Setup(NamedTuple):
    """What was analysed, and how.

    Attributes:
      operator: its kind and loss, such as "ggn of softmax_cross_entropy"; for your own
        operator, the name of its function.
      batches: how many; the analysis is of their mean.
      examples: per batch, along axis 0; None if the arrays of a batch differ in it.
      num_steps, num_starts, block_size: as passed to :func:`fgo_jax.spectrum`.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> squares = lambda params, batch: (batch * params) ** 2
      >>> operator = fgo.curvature.hessian(squares)
      >>> report = fgo.spectrum(operator, jnp.ones(1), jnp.ones(8), num_steps=1, top=1)
      >>> report.setup.operator, report.setup.examples
      ('hessian of a function', 8)

    Source: the definition above.
    """

    operator: str
    batches: int
    examples: int | None
    num_steps: int
    num_starts: int
    block_size: int

    def data(self) -> str:
        """The data in words.

        Returns:
          Such as "3 batches of 128 examples".

        Raises:
          Nothing.

        Example:
          >>> import fgo_jax as fgo
          >>> fgo.analysis.Setup("ggn of squared_error", 3, 128, 48, 6, 1).data()
          '3 batches of 128 examples'

        Source: the definition above.
        """
        each = "" if self.examples is None else f"{self.examples:,} examples"
        if self.batches == 1:
            return each or "one batch"
        return f"{self.batches} batches" + (f" of {each}" if each else "")


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
    an eigenvalue is its residual |A v - value v| instead: a true eigenvalue is within that
    distance. Sums of energy are over :math:`|\lambda|`, which is :math:`\lambda` for a
    positive semi-definite operator.

    Attributes:
      setup: the operator, the data and the steps, see :class:`Setup`.
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
        equals its size. None where no rows were given. Its error is infinite where the
        estimate of the mean gradient's squared length is not positive.
      energy: the share that was asked for.
      rule: ``nodes`` and ``weights`` of the quadrature, for any other sum over the spectrum. A
        node of a null space is zero up to rounding, of either sign.
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

    setup: Setup
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
          Nothing; out of range JAX gives the last one.

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
        change sign; y is logarithmic beyond w and linear within. Where no Ritz value has the
        other sign by more than rounding (1e-5 of the largest), the kernel is reflected at zero,
        so the smoothing gives a positive operator no negative eigenvalues.

        Args:
          points: of the grid, at least 2; neighbours are at most 1.5 widths apart.
          width: standard deviation s of the kernel, in decades.
          linear_width: w, in the unit of the eigenvalues. None takes what the steps resolve
            at zero: twice the gap between Ritz values there, within 1e-5 to 1e-2 of the
            largest eigenvalue. A smaller one shows the single Ritz values of an unresolved
            bulk.

        Returns:
          A :class:`Density`; its integral over the grid is ``dimension``.

        Raises:
          ValueError: for numbers that are not positive, points further apart than the width,
            or an operator that is zero.

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
        return smoothed(self.rule, self.short_rule, points, width, linear_width)

    def __str__(self) -> str:
        setup = self.setup
        block = f" in blocks of {setup.block_size}" if setup.block_size > 1 else ""
        rows = [
            ("operator", setup.operator),
            ("data", setup.data()),
            ("Lanczos", f"{setup.num_steps} steps{block}, {setup.num_starts} random starts"),
            ("dimension", f"{self.dimension}"),
        ]
        figures = {name: getattr(self, name) for name in _FIGURES}
        for name, estimate in figures.items():
            if estimate is not None:
                label = f"{name} ({self.energy:g})" if name == "energy_rank" else name
                rows.append((label, number(estimate)))
        listed = "" if self.complete else "  (not complete)"
        rows.append(("eigenvalues", " ".join(f"{x:.3g}" for x in self.eigenvalues) + listed))
        lines = [f"{name:<22}{text}" for name, text in rows]
        names = ("trace", "participation_ratio", "top_eigenvalue")
        if self.layers:
            lines += ["", "layer".ljust(22) + "dimension   " + "".join(f"{n:<28}" for n in names)]
            for layer, part in self.layers.items():
                numbers = "".join(f"{number(getattr(part, name)):<28}" for name in names)
                lines.append(f"{layer:<22}{part.dimension:<12}{numbers}")
        unresolved = [name for name, estimate in figures.items() if _is_unresolved(estimate)]
        for layer, part in self.layers.items():
            unresolved += [f"{n} of {layer}" for n in names if _is_unresolved(getattr(part, n))]
        if unresolved:
            lines += ["", f"Not resolved by {setup.num_steps} steps: {', '.join(unresolved)}."]
            lines += [f"Pass a larger num_steps=, such as {2 * setup.num_steps}."]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def _is_unresolved(estimate: Estimate | None) -> bool:
    return estimate is not None and bool(np.isinf(estimate.error))


def number(estimate: Estimate, error: bool = True) -> str:
    """The value as text, with its error if asked for."""
    if np.isnan(estimate.value):
        return "not told from noise"
    if np.isinf(estimate.error):
        return f"{float(estimate.value):.4g} (unresolved)"
    return f"{float(estimate.value):.4g}" + (f" +- {float(estimate.error):.2g}" if error else "")
