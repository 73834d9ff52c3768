"""Pictures of a spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np

from fgo_jax.analysis.plotting import canvas
from fgo_jax.analysis.report import SpectrumReport, number

_BULK, _OUTLIER = canvas.BLUE, canvas.VERMILLION
_UNIT = "[loss / parameter$^2$]"
# Below this many eigenvalues per decade there is only the tail of the kernel.
_FLOOR = 0.03


def spectral_density(
    report: SpectrumReport,
    ax: Any = None,
    *,
    width: float = 0.1,
    linear_width: float | None = None,
) -> Any:
    """Draws the bulk of a spectrum as a density and its outliers one by one.

    - Horizontal axis: the eigenvalue, logarithmic on both sides of a short linear stretch
      around zero. Vertical axis: eigenvalues per factor of ten.
    - Hatched band: two standard errors to each side, from the random starts and the change over the
      last third of the steps. Where they are unknown, it is as wide as the curve is high.
    - Marks: the listed eigenvalues, at the height of a single one under the kernel. They are
      filled where converged, hollow where the residual is above a tenth of their size.
    - Dotted line, with its own scale at the right: the share of the energy in larger
      eigenvalues.

    Args:
      report: from :func:`fgo_jax.spectrum`.
      ax: matplotlib axes to draw in; None makes a figure.
      width: standard deviation of the kernel, in decades.
      linear_width: half the width of the linear stretch, in the unit of the eigenvalues;
        None for what the steps resolve (see :meth:`SpectrumReport.density`).

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib, saying how to install it.
      ValueError: as :meth:`SpectrumReport.density`, and for anything but a report.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> values = jnp.array([9.0, 1.0, 1.0, 0.1])
      >>> report = fgo.spectrum(lambda params, batch: lambda v: values * v, jnp.zeros(4), 0)
      >>> fgo.plotting.spectral_density(report).get_xlabel()
      'eigenvalue [loss / parameter$^2$]'

    Source: the pictures of Ghorbani et al. (2019), "An investigation into neural net
    optimization via Hessian eigenvalue density".
    """
    _check(report)
    density = report.density(width=width, linear_width=linear_width)
    ax = canvas.axes(ax, (7.0, 4.0))
    x, height = density.eigenvalues, density.per_decade
    ax.set_xscale("asinh", linear_width=density.linear_width, base=10)
    ax.set_yscale("log")
    top = 3.0 * max(np.max(height), 1.0)
    # An unresolved figure (infinite error) gets a band as wide as itself.
    errors = density.per_decade_errors
    band = np.where(np.isinf(errors), density.per_decade, 2.0 * errors)
    ax.fill_between(x, _FLOOR, np.maximum(height, _FLOOR), color=_BULK, alpha=0.1, lw=0)
    lower, upper = np.maximum(height - band, _FLOOR), np.maximum(height + band, _FLOOR)
    label = "two standard errors" + (" (none known)" if np.all(np.isinf(errors)) else "")
    # Hatched: a fill would look like the density where the band reaches down to the floor.
    style = {"fc": "none", "ec": _BULK, "alpha": 0.5, "hatch": "////", "lw": 0.0}
    ax.fill_between(x, lower, upper, label=label, **style)
    seen = np.where(height > _FLOOR, height, np.nan)
    ax.plot(x, seen, color=_BULK, lw=1.4, label=f"density of all {report.dimension:,}")

    single = 1.0 / (width * (2 * np.pi) ** 0.5)
    sharp = report.residuals <= 0.1 * np.abs(report.eigenvalues)
    for chosen, face, what in ((sharp, _OUTLIER, "largest"), (~sharp, "none", "not converged")):
        values = report.eigenvalues[chosen]
        if not len(values):
            continue
        ax.vlines(values, _FLOOR, single, color=_OUTLIER, lw=0.9)
        label = f"the {len(values)} {what}, each as high as one"
        style = {"marker": "o", "ls": "none", "ms": 5, "mec": _OUTLIER, "mfc": face}
        ax.plot(values, np.full(len(values), single), label=label, **style)

    places, held = _energy_held(report)
    places, held = np.append(x[0], places), np.append(1.0, held)
    share = ax.twinx()
    label = "energy to the right (right scale)"
    (line,) = share.step(places, held, where="post", color="0.25", ls=":", lw=1.2, label=label)
    share.set_ylim(0.0, 1.15)
    share.set_yticks([0.0, 0.5, 1.0], ["0", "50 %", "100 %"])
    share.set_ylabel("share of energy")

    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(_FLOOR, top)
    _ticks(ax, density.linear_width, x[0], x[-1])
    ax.set_xlabel(f"eigenvalue {_UNIT}")
    ax.set_ylabel("eigenvalues per decade")
    handles, labels = ax.get_legend_handles_labels()
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "frameon": False}
    ax.legend([*handles, line], [*labels, label], fontsize=9, **place)
    rows = -(-(len(labels) + 1) // 2)
    data = f"{report.dimension:,} parameters, {report.setup.data()}"
    ax.set_title(f"{report.setup.operator}: {data}", fontsize="medium", pad=8 + 15 * rows)
    return ax


def layers(report: SpectrumReport, ax: Any = None) -> Any:
    """Draws the top and the mean eigenvalue of every group of parameters.

    The mean eigenvalue is the trace over the number of parameters. The participation ratio
    is written beside the bars. Error lines are two standard errors of the mean eigenvalue, and
    the residual of the top one.

    Args:
      report: from :func:`fgo_jax.spectrum` with ``groups=``.
      ax: matplotlib axes to draw in; None makes a figure.

    Returns:
      The axes, with the largest top eigenvalue at the top.

    Raises:
      ImportError: without matplotlib, saying how to install it.
      ValueError: for a report without groups, and for anything but a report.

    Example:
      >>> import jax.numpy as jnp
      >>> import fgo_jax as fgo
      >>> params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
      >>> def operator(params, batch):
      ...     return lambda v: {"a": 2.0 * v["a"], "b": 5.0 * v["b"]}
      >>> groups = fgo.probes.layer_groups(params)
      >>> report = fgo.spectrum(operator, params, batch=0, groups=groups)
      >>> fgo.plotting.layers(report).get_ylabel()
      'layer (parameters)'

    Source: the definition above.
    """
    _check(report)
    if not report.layers:
        raise ValueError(
            "the report has no layers: call fgo.spectrum(..., "
            "groups=fgo.probes.layer_groups(params))."
        )
    parts = sorted(report.layers.items(), key=lambda item: abs(item[1].top_eigenvalue.value))
    ax = canvas.axes(ax, (7.0, 1.6 + 0.55 * len(parts)))
    place = np.arange(len(parts))
    numbers = (
        ("top eigenvalue", _OUTLIER, 0.2, lambda part: part.top_eigenvalue, lambda part: 1.0),
        ("mean eigenvalue", _BULK, -0.2, lambda part: part.trace, lambda part: part.dimension),
    )
    ends = np.zeros(len(parts))
    bounds = None
    for label, color, offset, read, divisor in numbers:
        values = np.array([abs(float(read(part).value)) / divisor(part) for _, part in parts])
        factor = 1.0 if label.startswith("top") else 2.0
        errors = np.array([factor * float(read(part).error) / divisor(part) for _, part in parts])
        left = np.minimum(errors, 0.9 * values)  # stays above zero, for the logarithmic axis
        bounds = ax.barh(
            place + offset,
            values,
            0.36,
            color=color,
            label=label,
            xerr=np.stack([left, errors]),
            error_kw={"lw": 1.0, "capsize": 2.0},
        ).errorbar
        ends = np.maximum(ends, values + errors)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ratios = [f"PR {number(part.participation_ratio, error=False)}" for _, part in parts]
    room = 0.028 * max(map(len, ratios))
    ax.set_xlim(low / 2, high * (high / low) ** room)
    for y, end, ratio in zip(place, ends, ratios, strict=True):
        ax.text(end * (high / low) ** 0.02, y, ratio, va="center", fontsize=9)
    ax.set_yticks(place, [f"{name} ({part.dimension:,})" for name, part in parts])
    ax.set_xlabel(f"size of the eigenvalue {_UNIT}")
    ax.set_ylabel("layer (parameters)")
    handles, labels = ax.get_legend_handles_labels()
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3, "frameon": False}
    ax.legend(
        [*handles, bounds],
        [*labels, "two standard errors; of the top its residual"],
        fontsize=9,
        **place,
    )
    ax.set_title(
        f"{report.setup.operator}, by layer (PR: participation ratio)", fontsize="medium", pad=22
    )
    return ax


def _energy_held(report: SpectrumReport) -> tuple[np.ndarray, np.ndarray]:
    """The nodes, and the share of the energy in the nodes above each."""
    order = np.argsort(report.rule.nodes)
    nodes = report.rule.nodes[order]
    held = (report.rule.weights * np.abs(report.rule.nodes))[order]
    return nodes, 1.0 - np.cumsum(held) / np.sum(held)


def _ticks(ax: Any, linear_width: float, low: float, high: float) -> None:
    """Ticks at zero and at whole decades, about eight at most."""
    first, last = np.ceil(np.log10(linear_width)), np.floor(np.log10(max(high, -low)))
    decades = np.arange(first, last + 1.0)
    decades = decades[:: max(1, int(np.ceil(len(decades) / (4 if low < -(10**first) else 7))))]
    marks = np.concatenate([-(10.0**decades), [0.0], 10.0**decades])
    marks = np.sort(marks[(marks >= low) & (marks <= high)])
    names = [
        "0" if m == 0.0 else f"${'-' if m < 0 else ''}10^{{{round(np.log10(abs(m)))}}}$"
        for m in marks
    ]
    ax.set_xticks(marks, names)
    ax.set_xticks([], minor=True)


def _check(report: Any) -> None:
    if not isinstance(report, SpectrumReport):
        raise ValueError(f"this draws what fgo.spectrum returns, got {type(report).__name__}.")
