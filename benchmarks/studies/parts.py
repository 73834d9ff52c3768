"""Which part of the protocol does what: one part changed at a time.

Everything runs on the seeds of the unchanged protocol. Averaging on and off are two
readings, each at the rate tuned for it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.methods import METHODS, STUDIED
from benchmarks.methods.changed_parts import DECAYS
from benchmarks.race.levels import Level
from benchmarks.studies import study
from benchmarks.studies.study import Study, Variant
from benchmarks.tasks.task import Task

DEFAULT = "default"
OWN_DECAY = ("adaptive", 1.0)
CUTS = (0.3, 0.5)
SHARES = (0.25, 0.75)
LENGTHS = (1.0, 4.0)  # of decays over the protocol's own
ONSETS = (0.0, 0.5, 1.0)  # one of them is the reading's own

RULE = (
    "excess = steps with the change / steps of the unchanged protocol - 1, seed by seed, "
    "median and 95 % bootstrap percentile interval of that median. Raw weights at the learning "
    "rate tuned for fgo, averaged ones at that tuned for fgo_averaged: it may suit a change "
    "less than one of its own."
)


def _variant(part: str, name: str, method: str, decay: float = 1.0, **setting: float) -> Variant:
    return Variant(name, STUDIED[f"fgo_{method}"], setting, part, decay=decay)


# `dimension_only` is what the two probes of curvature must be compared with: they measure
# no agreement of gradients, so their triggers cannot ask for it.
VARIANTS = (
    Variant(DEFAULT, METHODS["fgo"], part="default"),
    _variant("trigger", "re-ask until the dimension rests", "until_rest"),
    _variant("probe", "gradient_stream, dimension only", "dimension_only"),
    _variant("probe", "hutchinson", "hutchinson"),
    _variant("probe", "lanczos", "lanczos"),
    _variant("switch", "Adam, then refinement", "adam_first"),
    _variant("switch", "Adam throughout", "adam_throughout"),
    _variant("momentum", "none, hyperbolic", "no_momentum"),
    _variant("momentum", "none, hyperbolic, x 4", "no_momentum", LENGTHS[-1]),
    *(_variant("momentum", f"share {s:g}", "changed", slow_share=s) for s in SHARES),
    *(_variant("cut", f"cut {cut:g}", "changed", cut=cut) for cut in CUTS),
    *(_variant("cut", f"cut {cut:g}, no momentum, hyperbolic", "no_momentum", cut=cut)
      for cut in CUTS),
    *(_variant("decay", f"onset {q:g}", "changed", decay_onset=q) for q in ONSETS),
    *(_variant("decay", name if length == 1 else f"{name}, x {length:g}", f"decay_{name}", length)
      for name in DECAYS for length in LENGTHS if (name, length) != OWN_DECAY),
)  # fmt: skip


def variants(task: Task) -> list[Variant]:
    """Those of the table that make sense on a task."""
    # On the bowl the refinement's rate is Newton's, at which Adam's steps are far too long.
    bowl = task.name.startswith("quadratic")
    return [v for v in VARIANTS if not (bowl and v.part == "switch")]


def table_of(held: Study) -> dict[str, Any]:
    """The figures of a task: at each level and reading every variant against the default."""

    def reading(level: Level, weights: study.Weights) -> dict[str, Any]:
        own = held.hits(level, weights, DEFAULT)
        return {"rows": {n: study.row(held, level, weights, n, own) for n in held.variants}}

    return study.table_of(held, reading)


def base(reading: Mapping[str, Any]) -> dict[str, Any]:
    """The row that the others of a reading are compared with."""
    return reading["rows"][DEFAULT]


HEADINGS = ("part", "variant", "steps", "excess", "final", "reached")


def cells(table: dict[str, Any], reading: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The rows of one reading as text, under `HEADINGS`."""
    for name, row in reading["rows"].items():
        yield (row["part"], name, *study.last_cells(table, row))
