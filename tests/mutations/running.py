"""Runs tests on a copy of the package that holds a mutation."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.mutations.mutation import ROOT, Mutation

LIMIT = 600  # seconds for a mutation; one that hangs is caught
# Exit statuses: pytest's plus ten, so that a process that broke is neither. Any other is a
# mistake in the list.
PASSED, FAILED = 10, 11
# Each process is forked from one that has imported what all tests import, but nothing of ours.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTED = ["numpy", "jax", "jax.numpy", "optax", "optax.contrib", "scipy.stats", "pytest"]


def in_copy(copy: Path, tests: tuple[str, ...], mutated: bool, printed: Path) -> None:
    """Runs pytest in a process of its own, on the packages in the copy."""
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    # Only the plain package is compiled to files: what a mutation leaves must not be read again.
    sys.dont_write_bytecode = mutated
    with printed.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        status = pytest.main([*options, *(f"tests/{test}" for test in tests)])
    os._exit(PASSED + status)


def run_tests(copy: Path, tests: tuple[str, ...], mutated: bool) -> str:
    printed = copy / "printed"
    process = PROCESSES.Process(target=in_copy, args=(copy, tests, mutated, printed))
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        return "caught"
    if process.exitcode not in (PASSED, FAILED):
        raise RuntimeError(f"{' '.join(tests)}: {process.exitcode}\n{printed.read_text()[-3000:]}")
    return "caught" if process.exitcode == FAILED else "survived"


def prepare() -> None:
    """Makes the tests' settings, before any process takes them."""
    # JAX keeps every program that it compiled: most are the same in all mutations.
    compiled = os.path.join(tempfile.gettempdir(), "fgo_jax-compiled-mutations")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    importlib.import_module("tests.conftest")
    PROCESSES.set_forkserver_preload(IMPORTED)


def outcome(mutation: Mutation, copy: Path) -> str:
    file = copy / "fgo_jax" / mutation.file
    text, times = file.read_text(), file.stat()
    try:
        file.write_text(mutation.applied(text))
        return run_tests(copy, mutation.tests, mutated=True)
    finally:
        # With its old time it is the file that was compiled.
        file.write_text(text)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
