"""A study of triggers whose hits are known."""

import dataclasses

import numpy as np

from benchmarks.methods import METHODS, STUDIED
from benchmarks.race.hold import Entry
from benchmarks.race.levels import Level
from benchmarks.runs.training import Curves
from benchmarks.studies import study
from benchmarks.studies.study import Study, Variant
from benchmarks.studies.which_trigger import SIGNALS
from benchmarks.tasks import get_task

BOWL = get_task("quadratic_bowl").shortened(60)


def curves(hit, started, causes):
    """A run that reaches 0.5 at step `hit` of 100."""
    steps = np.arange(1, 101)
    values = np.where(steps >= hit, 0.4, 0.6)
    telemetry = {}
    for index, phase in enumerate(("reask", "execution")):
        telemetry[f"started/{phase}"] = np.full(100, started[index])
        telemetry[f"cause/{phase}"] = np.full(100, causes[index])
    for name in SIGNALS:
        telemetry[name] = np.where(steps > 5, hit + steps, np.nan)
    return Curves(steps, values, values, values, telemetry, {}, 0.0)


def planted(name="planted"):
    task = dataclasses.replace(BOWL, num_steps=100, eval_every=1, smoothing=1)
    level = Level(name, "a planted level", 0.5, {"raw": "constant", "averaged": "constant"})
    told = STUDIED["fgo_at_steps"]
    variants = {
        "fgo": Variant("fgo", METHODS["fgo"], part="trigger"),
        "fgo_by_angle": Variant("fgo_by_angle", METHODS["fgo_by_angle"], part="trigger"),
        "at 1, 2": Variant("at 1, 2", told, {"first": 1.0, "second": 2.0}, part="fixed"),
        "at 3, 4": Variant("at 3, 4", told, {"first": 3.0, "second": 4.0}, part="fixed"),
        "longer": Variant("longer", told, {"first": 1.0, "second": 2.0}, part="fixed", decay=4.0),
    }
    runs = {
        "fgo": {s: curves(h, (30, -1), (1, 0)) for s, h in enumerate((44, 55, 90))},
        "fgo_by_angle": {s: curves(h, (9, -1), (1, 0)) for s, h in enumerate((60, 101, 101))},
        "at 1, 2": {s: curves(h, (1, 2), (1, 1)) for s, h in enumerate((40, 50, 60))},
        "at 3, 4": {s: curves(h, (3, 4), (1, 1)) for s, h in enumerate((30, 70, 101))},
        "longer": {s: curves(h, (1, 2), (1, 1)) for s, h in enumerate((20, 40, 60))},
    }
    rates: dict[study.Weights, float] = {"raw": 0.1, "averaged": 0.1}
    own = {s: curves(h, (-1, -1), (0, 0)) for s, h in enumerate((80, 101, 100))}
    reference = Entry(task, METHODS["constant"], {}, own)
    references = {(name, weights): reference for weights in study.READINGS}
    # Averaged weights take the triggers ten steps longer.
    slower = {**runs, "fgo": {s: curves(h, (30, -1), (1, 0)) for s, h in enumerate((54, 65, 100))}}
    entries = {
        weights: {
            name: Entry(task, dataclasses.replace(variants[name].method, weights=weights), {}, kept)
            for name, kept in both.items()
        }
        for weights, both in (("raw", runs), ("averaged", slower))
    }
    return Study(task, [level], rates, variants, entries, references, True)


def later_is_better(name="planted"):
    """Best times that are not the earliest, and a rival that arrives; on raw weights only."""
    held = planted(name)
    # The reference needs 80, T and 100: 48 median steps are a ratio of 0.5, and 49 one of 0.49.
    changed = {
        "at 1, 2": {s: curves(h, (1, 2), (1, 1)) for s, h in enumerate((40, 48, 70))},
        "at 3, 4": {s: curves(h, (3, 4), (1, 1)) for s, h in enumerate((36, 49, 90))},
        "fgo_by_angle": {s: curves(h, (9, -1), (1, 0)) for s, h in enumerate((60, 90, 90))},
    }
    raw = dict(held.entries["raw"])
    for variant, kept in changed.items():
        raw[variant] = dataclasses.replace(raw[variant], runs=kept)
    return dataclasses.replace(held, entries={**held.entries, "raw": raw})
