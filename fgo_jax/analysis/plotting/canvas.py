"""Where pictures are drawn, their inks and their scales."""

from __future__ import annotations

from typing import Any

import numpy as np

# The palette of Okabe and Ito, distinguishable with colour blindness.
BLUE, VERMILLION, ORANGE, GREEN = "#0072B2", "#D55E00", "#E69F00", "#009E73"
INK, QUIET, RULE = "#22262b", "#5f6670", "#d9dde3"
# A positive curve that spans more than `_SPAN` gets a logarithmic axis. It leaves out values below
# the highest by more than `_DEEPEST`: a loss may be zero.
_SPAN, _DEEPEST = 8.0, 1e9
_FEWEST = 3  # numbers on an axis


def pyplot() -> Any:
    """matplotlib.pyplot; raises where it is not installed, saying how to get it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need matplotlib: run `pip install 'fgo_jax[plot]'`.") from error
    return plt


def axes(ax: Any, size: tuple[float, float]) -> Any:
    """The given axes, or those of a new figure of a size in inches."""
    return pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def scale(
    axis: Any,
    values: np.ndarray,
    *,
    decades: bool = True,
    below: float = 0.0,
    whole: bool = False,
) -> None:
    """A logarithmic axis where the values span a large factor, and room around them.

    Args:
      axis: of matplotlib.
      values: that are drawn.
      decades: whether it may be logarithmic.
      below: room for a legend below the curve, as a share of a logarithmic axis.
      whole: whether the values are counts.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = np.min(values), np.max(values)
    positive = values[values > high / _DEEPEST]
    if decades and low >= 0.0 and high > _SPAN * np.min(positive, initial=np.inf):
        low, high = np.min(positive) / 1.3, high * 1.3
        low *= (low / high) ** below
        axis.set_yscale("log")
        axis.set_ylim(low, high)
        if high < 100.0 * low:  # powers of ten alone would say too little
            axis.set_yticks(round_numbers(low, high))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: "")
    else:
        room = 0.12 * (max(high, 0.0) - min(low, 0.0) or 1.0)
        axis.set_ylim(low - room if low < 0.0 else 0.0, high + room)
        counts = {"integer": True, "steps": [1, 2, 4, 5, 10]} if whole else {}
        axis.locator_params(axis="y", nbins=4, **counts)


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in between, or closer numbers where these are too few."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for within in ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        found = [m * 10.0**e for e in decades for m in within if low <= m * 10.0**e <= high]
        if len(found) >= _FEWEST:
            return found
    unit = 10.0 ** np.floor(np.log10(high - low))
    evenly = [
        np.arange(np.ceil(low / step), np.floor(high / step) + 1.0) * step
        for step in (unit, unit / 2.0, unit / 5.0)
    ]
    return next(list(each) for each in evenly if len(each) >= _FEWEST)
