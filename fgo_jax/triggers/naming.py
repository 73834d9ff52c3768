"""Names of conditions: of negated ones, of second ones, and in words."""

from __future__ import annotations

import math
import re
from collections.abc import Container


def negated(name: str) -> str:
    """`not_loss_below` of `loss_below`, and the other way round."""
    return name.removeprefix("not_") if name.startswith("not_") else f"not_{name}"


def free(name: str, taken: Container[str]) -> str:
    """The name, with `_2`, `_3`, ... where it is taken."""
    new, copy = name, 2
    while new in taken:
        new, copy = f"{name}_{copy}", copy + 1
    return new


def in_words(name: str, bound: float) -> str:
    """For people: "loss below 10", and "loss below 10 (2)" for the second of a name."""
    kind, _, copy = name.rpartition("_")
    if not kind or not re.fullmatch(r"\d+", copy):
        kind, copy = name, ""
    number = "" if math.isnan(bound) else f" {bound:g}"
    return kind.replace("_", " ") + number + (f" ({copy})" if copy else "")
