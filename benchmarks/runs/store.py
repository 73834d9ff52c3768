"""Runs that are kept: one JSON file each, found again by what the run depends on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.methods import schedules
from benchmarks.runs import training
from benchmarks.methods import Method, file_of, get_method
from benchmarks.methods import method as method_module
from benchmarks.tasks import Task, get_task
from benchmarks.tasks import task as task_module
from benchmarks.runs.training import Curves, train

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # what is committed
_FLAT_LIST = re.compile(r"\[[^\[\]{}]*\]")  # of numbers or names: one line in a file


def run(
    task: Task | str,
    method: Method | str,
    hyperparameters: Mapping[str, float],
    seed: int = 0,
    *,
    directory: Path | str | None = "runs",
    progress: Callable[[int], None] = lambda steps: None,
) -> Curves:
    """Trains once, or reads the run from `directory` if the very same one is there.

    Args:
      task: a task or its name.
      method: a contestant or its name.
      hyperparameters: for the contestant's `build`.
      seed: of data, initial weights and batches.
      directory: the cache; None keeps nothing.
      progress: called with a number of finished steps.
    """
    task = get_task(task) if isinstance(task, str) else task
    method = get_method(method) if isinstance(method, str) else method
    if directory is None:
        return train(task, method, hyperparameters, seed, progress=progress)
    identity = run_identity(task, method, hyperparameters, seed)
    path = _path(Path(directory), identity)
    if path.exists():
        progress(task.num_steps)
        return curves_from(json.loads(path.read_text())["curves"])
    curves = train(task, method, hyperparameters, seed, progress=progress)
    write_json(path, {**identity, "environment": environment(), "curves": plain(curves)})
    return curves


def is_cached(task: Task, method: Method, hyperparameters, seed: int, directory) -> bool:
    return _path(Path(directory), run_identity(task, method, hyperparameters, seed)).exists()


def run_identity(task: Task, method: Method, hyperparameters, seed: int) -> dict[str, Any]:
    """All that a run's result depends on."""
    return {
        "task": task.name,
        "num_steps": task.num_steps,
        "eval_every": task.eval_every,
        "trajectory": method.trajectory,
        "hyperparameters": dict(sorted(hyperparameters.items())),
        "seed": seed,
        "backend": jax.default_backend(),
        "versions": versions(),
        "data": task.digest,
        "code": code_fingerprint(task, method),
    }


def source_of(task: Task) -> str:
    """The file that defines a task."""
    return inspect.getfile(task.batch)


def code_fingerprint(task: Task, method: Method) -> str:
    """A digest of the sources behind a run, as they were when this process first asked."""
    source = source_of(task)
    parts = (str(Path(source).with_name(name)) for name in task.uses)
    own = (source, *parts, file_of(method))
    return _fingerprint(own, method.uses, method.shares)


@functools.cache
def _fingerprint(own: tuple[str, ...], uses: tuple[str, ...], shares: tuple[str, ...] = ()) -> str:
    shared = map(_source, (task_module, method_module, schedules, training))
    files = [*map(Path, own), *shared]
    for folder, patterns in (("fgo_jax", uses), ("benchmarks", shares)):
        for pattern in patterns:
            files += sorted((ROOT / folder).glob(pattern))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _source(module) -> Path:
    return Path(module.__file__)


def _path(directory: Path, identity) -> Path:
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return directory / "runs" / identity["task"] / f"{identity['trajectory']}-{key}.json"


@functools.cache
def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "flax")}


@functools.cache
def environment() -> dict[str, Any]:
    """Where a result was made; nothing that names a machine or a person."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "revision": git.stdout.strip() or None,
    }


def held_in(path: Path, key: str) -> dict[str, Any]:
    """What a results file has already under a key, so that one part can be made anew."""
    return json.loads(path.read_text())[key] if path.exists() else {}


def plain(value: Any) -> Any:
    """Arrays as lists and dataclasses as dicts; what is not finite becomes null."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, content: Any) -> None:
    """Writes in one move, so that an interrupted race leaves no half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(content), indent=1, allow_nan=False)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(_FLAT_LIST.sub(lambda match: " ".join(match[0].split()), text) + "\n")
    os.replace(file.name, path)


def curves_from(stored: Mapping[str, Any]) -> Curves:
    def array(values):
        return np.asarray([math.nan if v is None else v for v in values], np.float64)

    return Curves(
        steps=np.asarray(stored["steps"]),
        raw=array(stored["raw"]),
        averaged=array(stored["averaged"]),
        train=array(stored["train"]),
        telemetry={k: array(v) for k, v in stored["telemetry"].items()},
        test={
            name: {k: math.nan if v is None else v for k, v in metrics.items()}
            for name, metrics in stored["test"].items()
        },
        seconds=stored["seconds"],
    )
