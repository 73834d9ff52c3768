"""When a run's phases ended, and what ended them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.runs.training import Curves

BY_TRIGGER = 1  # in the telemetry's `cause/PHASE`
LATER = ("reask", "execution")


def of_runs(runs: Iterable[Curves]) -> dict[str, np.ndarray]:
    """For re-ask and execution, run by run: the step at which it began (inf: never), and why.

    `started` and `causes` have shape (2, runs); causes are the telemetry's `cause/PHASE`.
    """
    last = [{name: values[-1] for name, values in run.telemetry.items()} for run in runs]
    started = np.asarray([[run[f"started/{phase}"] for run in last] for phase in LATER], float)
    causes = np.asarray([[run[f"cause/{phase}"] for run in last] for phase in LATER])
    return {"started": np.where(started >= 0, started, np.inf), "causes": causes}


def by_trigger(row: Mapping[str, Any]) -> int:
    """How many runs of a row of results came to execution by triggers alone."""
    return int((np.asarray(row["causes"]) == BY_TRIGGER).all(axis=0).sum())
