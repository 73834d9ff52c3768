"""This tree against another revision of it: the same runs, step times and compile times.

Both revisions are imported into one process, one after the other. Their compiled steps are then
timed in turns, so that the machine's drift cancels in the ratio.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.runs import clock
from benchmarks.runs.store import ROOT, environment

# (task, learning rate, steps): the bowl and the network whose equality is asked for after 50
# steps, and both once more over steps enough for all transitions.
RUNS = (
    ("quadratic_bowl", 1.0, 50),
    ("digits_vit", 3e-3, 50),
    ("quadratic_bowl", 1.0, 1000),
    ("digits_vit", 3e-3, 300),
)
CALL = 10  # steps of a timed call
ROUNDS = 60


class Loaded(NamedTuple):
    """One revision's run of the default protocol on a task."""

    run: Callable[[int], tuple[Any, Mapping[str, Any]]]  # steps -> parameters, telemetry
    call: Callable[[], Any]  # CALL steps, compiled
    compile_seconds: float  # of CPU time


def measure(revision: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Differences and ratios of this tree over `revision`."""
    rows = []
    with checked_out(revision) as other:
        for task, rate, steps in RUNS:
            pair = [load(tree, task, rate) for tree in (ROOT, other)]
            (ours, telemetry), (theirs, _) = (loaded.run(steps) for loaded in pair)
            began = transitions(telemetry)
            calls = {"here": pair[0].call, "there": pair[1].call}
            seconds = clock.interleaved(calls, rounds)
            ratio = clock.bounded(seconds["here"] / seconds["there"])
            rows.append(
                {
                    "task": task,
                    "learning_rate": rate,
                    "steps": steps,
                    "largest_relative_difference": difference(ours, theirs),
                    "transitions": began,
                    "same_transitions": began == transitions(pair[1].run(steps)[1]),
                    "step_time_ratio": ratio._asdict(),
                    "compile_time_ratio": pair[0].compile_seconds / pair[1].compile_seconds,
                }
            )
    return {"revision": revision, "rows": rows, "environment": environment()}


def transitions(telemetry: Mapping[str, Any]) -> list[int]:
    """The steps at which re-ask and execution began; older revisions number the phases."""
    names = enumerate(("reask", "execution"), start=1)
    keys = [{f"started/{name}", f"started/{index}"} & set(telemetry) for index, name in names]
    return [int(telemetry[key][-1]) for (key,) in keys]


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two entries, relative to their leaf's root mean square."""

    def of_leaf(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.sqrt(np.mean(b**2))
        return float(np.max(np.abs(a - b)) / scale) if scale else float(np.max(np.abs(a)))

    return max(jax.tree.leaves(jax.tree.map(of_leaf, ours, theirs)))


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the sources of a revision."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "sources.tar"
        subprocess.run(
            ["git", "archive", "-o", archive, revision, "fgo_jax", "benchmarks"],
            cwd=ROOT,
            check=True,
        )
        with tarfile.open(archive) as sources:
            sources.extractall(folder, filter="data")
        yield Path(folder)


@contextmanager
def imported_from(tree: Path) -> Iterator[None]:
    """Inside, `fgo_jax` and `benchmarks` are those of `tree`; the present ones come back after."""

    def ours() -> dict[str, Any]:
        packages = ("fgo_jax", "benchmarks")
        return {n: m for n, m in sys.modules.items() if n.split(".")[0] in packages}

    present = ours()
    for name in present:
        del sys.modules[name]
    sys.path.insert(0, str(tree))
    try:
        yield
    finally:
        sys.path.remove(str(tree))
        for name in ours():
            del sys.modules[name]
        sys.modules.update(present)


def load(tree: Path, task_name: str, learning_rate: float) -> Loaded:
    """The default protocol of a tree on a task, with its programs compiled."""
    with imported_from(tree):
        tasks, methods = map(importlib.import_module, ("benchmarks.tasks", "benchmarks.methods"))
        fgo = importlib.import_module("fgo_jax")
        assert Path(fgo.__file__ or "").is_relative_to(tree)
        task = tasks.get_task(task_name)
        tx = methods.get_method("fgo").build(task, {"learning_rate": learning_rate})
        init_key, batch_key = jax.random.split(jax.random.key(0))
        data, params = task.data(0), task.init(init_key)

        def step(carry, number):
            params, state = carry
            batch = task.batch(data, batch_key, number)
            value, grads = jax.value_and_grad(task.loss)(params, batch)
            updates, state = tx.update(grads, state, params, value=value)
            params = jax.tree.map(lambda p, u: p + u, params, updates)
            return (params, state), fgo.telemetry(state)

        def steps(carry, numbers):
            return jax.lax.scan(step, carry, numbers)

        start = (params, tx.init(params))
        numbers = np.arange(CALL, dtype=np.int32)
        began = time.process_time()
        compiled = jax.jit(steps).lower(start, numbers).compile()
        seconds = time.process_time() - began

    def run(count: int) -> tuple[Any, Mapping[str, Any]]:
        carry, records = start, []
        for first in range(0, count, CALL):
            carry, record = compiled(carry, numbers + np.int32(first))
            records.append(record)
        telemetry = jax.tree.map(lambda *parts: np.concatenate(parts), *records)
        return jax.device_get(carry[0]), telemetry

    return Loaded(run, lambda: compiled(start, numbers), seconds)
