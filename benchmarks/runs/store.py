"""Runs that are kept: one JSON file each, found again by what the run depends on."""

import dataclasses
import functools
import hashlib
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

from benchmarks.methods import Method
from benchmarks.runs.training import Curves, Program, program_of, train
from benchmarks.tasks import Task

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"  # what is committed
_FLAT_LIST = re.compile(r"\[[^\[\]{}]*\]")  # of numbers or names: one line in a file


def run(
    task: Task, method: Method, hyperparameters: Mapping[str, float], seed: int, *, directory: Path,
    progress: Callable[[int], None] = lambda steps: None,
) -> Curves:  # fmt: skip
    """Trains once, or reads the run from `directory` if the very same one is there."""
    identity = run_identity(task, method, hyperparameters, seed)
    key = _digest(json.dumps(identity, sort_keys=True).encode())
    path = directory / "runs" / task.name / f"{method.trajectory}-{key}.json"
    if path.exists():
        progress(task.num_steps)
        return curves_from(json.loads(path.read_text())["curves"])
    curves = train(task, method, hyperparameters, seed, progress=progress)
    write_json(path, {**identity, "environment": environment(), "curves": curves})
    return curves


def run_identity(
    task: Task, method: Method, hyperparameters: Mapping[str, float], seed: int
) -> dict[str, Any]:
    """All that a run's result depends on.

    The lowered program stands for the code: whatever changes a run's arithmetic, in any file,
    changes the program, and nothing else does.
    """
    names = tuple(sorted(hyperparameters))
    return {
        "task": task.name, "num_steps": task.num_steps, "eval_every": task.eval_every,
        "trajectory": method.trajectory,
        "hyperparameters": {name: hyperparameters[name] for name in names}, "seed": seed,
        "backend": jax.default_backend(), "processor": processor(), "versions": versions(),
        "data": _data_digest(task, seed),
        "program": program_digest(task, program_of(task, method), names),
    }  # fmt: skip


@functools.cache
def program_digest(task: Task, program: Program, names: tuple[str, ...]) -> str:
    """Of a run with these hyperparameters; their values are arguments of the program."""
    return _digest(program.lowered(names, task.data(0)).encode())


@functools.cache
def _data_digest(task: Task, seed: int) -> str:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(task.data(seed))]
    return _digest(*(part for leaf in leaves for part in (str(leaf.shape).encode(), leaf)))


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


@functools.cache
def processor() -> str:
    """Its model, since processors round differently."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", told.read_text()) if told.exists() else None
    return found[1] if found else platform.processor()


@functools.cache
def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "flax")}


@functools.cache
def environment() -> dict[str, Any]:
    """Where a result was made; nothing that names a machine or a person."""
    command = ["git", "rev-parse", "HEAD"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "python": platform.python_version(), **versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": jax.devices()[0].device_kind, "backend": jax.default_backend(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "revision": git.stdout.strip() or None,
    }  # fmt: skip


def held_in(path: Path, key: str) -> dict[str, Any]:
    """What a results file has already under a key, so that one part can be made anew."""
    return json.loads(path.read_text())[key] if path.exists() else {}


def plain(value: Any) -> Any:
    """Arrays as lists and dataclasses as dicts; what is not finite becomes null."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
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
    def restored(value):
        if isinstance(value, Mapping):
            return {name: restored(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return np.asarray([math.nan if v is None else v for v in value])
        return math.nan if value is None else value

    return Curves(**restored(stored))
