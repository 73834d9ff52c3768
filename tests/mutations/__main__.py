"""Runs the mutations: `python -m tests.mutations [WORD ...]`, for files that hold a word.

Each one is made in a copy of package and tests, and its test files run up to the first failure.
It is caught if a test fails, and survives if all pass. Outcomes are kept in a file, by the texts
that they came from, so a second call runs what is new. The exit status is 1 below 90 % caught.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutations.listed import EQUIVALENT, MUTATIONS
from tests.mutations.mutation import ROOT, Mutation

LEAST = 0.9  # of the mutations must be caught
LIMIT = 600  # seconds for a mutation; one that hangs is caught
PASSED, FAILED = 0, 1  # pytest's exit statuses; any other is a mistake in the list


def run_tests(copy: Path, tests: tuple[str, ...], mutated: bool) -> str:
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
    # Only the plain package is compiled to files: what a mutation leaves must not be read again.
    # JAX keeps every program that it compiled: most are the same in all mutations.
    environment = {
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "fgo_jax-mutations"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
        "PYTHONPATH": str(copy),
    }
    if mutated:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "caught"
    if done.returncode not in (PASSED, FAILED):
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return "caught" if done.returncode == FAILED else "survived"


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


def fingerprint(mutation: Mutation) -> str:
    files = [mutation.path, *(ROOT / "tests" / test.partition("::")[0] for test in mutation.tests)]
    texts = [file.read_text() for file in files]
    return hashlib.sha256(repr((mutation, texts)).encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--kept", type=Path, help="file of outcomes; by default a temporary one")
    options = parser.parse_args()
    kept = options.kept or Path(tempfile.gettempdir()) / "fgo_jax-mutations.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    chosen = [
        m for m in MUTATIONS if not options.words or any(word in m.file for word in options.words)
    ]
    prints = {m: fingerprint(m) for m in chosen}
    open_ones = [m for m in chosen if prints[m] not in known]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for package in ("fgo_jax", "tests", "benchmarks"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, copy / package, ignore=ignored)
        shutil.copy2(ROOT / "pyproject.toml", copy)
        used = tuple(dict.fromkeys(test for m in open_ones for test in m.tests))
        if used and run_tests(copy, used, mutated=False) != "survived":
            raise SystemExit("A test fails without any mutation: mend it first.")
        for number, mutation in enumerate(open_ones, 1):
            found = known[prints[mutation]] = outcome(mutation, copy)
            kept.write_text(json.dumps(known))
            place = f"{number} of {len(open_ones)}"
            print(f"{place}: {found}: {mutation.file}: {mutation.wrong}", flush=True)
    return report({m: known[prints[m]] for m in chosen})


def report(found: dict[Mutation, str]) -> int:
    print("\n| outcome | file | what the mutated package does |\n|---|---|---|")
    for mutation, outcome in found.items():
        print(f"| {outcome} | {mutation.file} | {mutation.wrong} |")
    for mutation, reason in EQUIVALENT:
        print(f"| equivalent | {mutation.file} | {mutation.wrong}: {reason} |")
    caught = list(found.values()).count("caught")
    rate = caught / max(len(found), 1)
    print(f"\n{caught} of {len(found)} caught: {rate:.0%}.")
    return int(rate < LEAST)


if __name__ == "__main__":
    raise SystemExit(main())
