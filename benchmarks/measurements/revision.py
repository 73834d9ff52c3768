"""This tree against another revision of it: the same runs, step times and compile times.

Both are imported into one process, one after the other. Their compiled steps are then timed in
turns, so that the machine's drift cancels in the ratio.
"""

import contextlib
import importlib
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.runs import timing
from benchmarks.runs.store import ROOT, environment

# Task, learning rate and step counts: 50 steps, and enough for all transitions.
RUNS = (("quadratic_bowl", 1.0, (50, 1000)), ("digits_vit", 3e-3, (50, 300)))
CALL = 10  # steps of a compiled call
ROUNDS, REPEATS, COMPILATIONS = 40, 5, 8


def measure(revision: str) -> dict[str, Any]:
    """Differences and ratios of this tree over `revision`."""
    rows = []
    with checked_out(revision) as other:
        for task, rate, counts in RUNS:
            made = [compiled_step(tree, task, rate) for tree in (ROOT, other) * COMPILATIONS]
            here, there = made[-2:]
            row: dict[str, Any] = {"task": task, "learning_rate": rate}
            for count in counts:
                (ours, began), (theirs, began_there) = (run(x, count) for x in (here, there))
                row[f"difference_after_{count}"] = difference(ours, theirs)
                row[f"transitions_by_{count}"] = [began, began_there]
            calls = {"here": here["call"], "there": there["call"]}
            seconds = timing.interleaved(calls, ROUNDS, repeats=REPEATS)
            # The first two compilations pay for the process's own start.
            compiling = np.asarray([one["compile"] for one in made[2:]]).reshape(-1, 2).T
            for name, (ours, theirs) in {"step": seconds.values(), "compile": compiling}.items():
                ratio = timing.bounded(ours / theirs)
                row |= {f"{name}_time_ratio": ratio.median, f"{name}_time_ratio_upper": ratio.upper}
            rows.append(row)
    return {"revision": revision, "rows": rows, "environment": environment()}


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two entries, relative to their leaf's root mean square."""
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.sqrt((b**2).mean()), ours, theirs)
    return float(max(jax.tree.leaves(gaps)))


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the sources of a revision."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "sources.tar"
        command = ["git", "archive", "-o", archive, revision, "fgo_jax", "benchmarks"]
        subprocess.run(command, cwd=ROOT, check=True)
        with tarfile.open(archive) as sources:
            sources.extractall(folder, filter="data")
        yield Path(folder)


@contextlib.contextmanager
def imported_from(tree: Path) -> Iterator[None]:
    """Inside, `fgo_jax` and `benchmarks` are those of `tree`."""

    def taken_out() -> dict[str, Any]:
        names = [n for n in sys.modules if n.split(".")[0] in ("fgo_jax", "benchmarks")]
        return {name: sys.modules.pop(name) for name in names}

    present = taken_out()
    sys.path.insert(0, str(tree))
    try:
        yield
    finally:
        sys.path.remove(str(tree))
        taken_out()
        sys.modules.update(present)


def compiled_step(tree: Path, task_name: str, learning_rate: float) -> dict[str, Any]:
    """A tree's default protocol on a task: `CALL` compiled steps, and how long that took."""
    with imported_from(tree):
        fgo, methods = map(importlib.import_module, ("fgo_jax", "benchmarks.methods"))
        task = importlib.import_module("benchmarks.tasks").get_task(task_name)
        tx = methods.METHODS["fgo"].build(task, {"learning_rate": learning_rate})
        init_key, batch_key = jax.random.split(jax.random.key(0))
        data, params = task.data(0), task.init(init_key)

        def step(carry, number):
            params, state = carry
            batch = task.batch(data, batch_key, number)
            value, grads = jax.value_and_grad(task.loss)(params, batch)
            updates, state = tx.update(grads, state, params, value=value)
            return (jax.tree.map(lambda p, u: p + u, params, updates), state), None

        def call(carry, first):
            return jax.lax.scan(step, carry, first + np.arange(CALL, dtype=np.int32))[0]

        start, zero = (params, tx.init(params)), np.int32(0)
        began = time.process_time()
        steps: Callable = jax.jit(call).lower(start, zero).compile()
        seconds = time.process_time() - began
    return {
        "steps": steps, "start": start, "compile": seconds, "read": fgo.telemetry,
        "call": lambda: steps(start, zero),
    }  # fmt: skip


def run(compiled: dict[str, Any], count: int) -> tuple[Any, list[int]]:
    """The parameters after some steps, and where re-ask and execution began; -1: not yet."""
    carry = compiled["start"]
    for first in range(0, count, CALL):
        carry = compiled["steps"](carry, np.int32(first))
    told = compiled["read"](carry[1])
    began = sorted(int(number) for name, number in told.items() if name.startswith("started/"))
    return jax.device_get(carry[0]), [step for step in began if step]
