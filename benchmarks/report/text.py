"""Figures as text, and what JSON has no number for."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def restored(stored: Any) -> Any:
    """JSON with inf in the place of null, which stands for what was never reached."""
    if isinstance(stored, Mapping):
        return {key: restored(value) for key, value in stored.items()}
    if isinstance(stored, list):
        return [restored(value) for value in stored]
    return math.inf if stored is None else stored


def known(values: Sequence[float | None]) -> np.ndarray:
    return np.asarray(restored(list(values)), np.float64)


def number(value: float | None, form: str, beyond: str) -> str:
    return beyond if value is None or not math.isfinite(value) else form.format(value)


def spread(summary: Mapping[str, Any], form: str, beyond: str) -> str:
    """Median [low, high], with `beyond` for what was not reached."""
    median, low, high = (number(summary[key], form, beyond) for key in ("median", "low", "high"))
    return median if low == high == median else f"{median} [{low}, {high}]"


def setting(hyperparameters: Mapping[str, float]) -> str:
    return " ".join(f"{value:g}" for value in hyperparameters.values())


def tests(metrics: Mapping[str, Any]) -> str:
    return " / ".join(number(metric["median"], "{:.3g}", "-") for metric in metrics.values())


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *body))
