"""Runs the mutations: `python -m tests.mutations [WORD ...]`, for files that hold a word.

Each one is made in a copy of package and tests, and its test files run up to the first failure.
It is caught if a test fails, and survives if all pass. Outcomes are kept in a file, by the texts
that they came from, so a second call runs what is new. The exit status is 1 below 90 % caught.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from tests.mutations.listed import EQUIVALENT, MUTATIONS
from tests.mutations.mutation import ROOT, Mutation
from tests.mutations.running import outcome, prepare, run_tests

LEAST = 0.9  # of the mutations must be caught


def fingerprint(mutation: Mutation) -> str:
    files = [mutation.path, *(ROOT / "tests" / test.partition("::")[0] for test in mutation.tests)]
    texts = [file.read_text() for file in files]
    return hashlib.sha256(repr((mutation, texts)).encode()).hexdigest()


def main() -> int:
    prepare()
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
    for mutation, end in found.items():
        print(f"| {end} | {mutation.file} | {mutation.wrong} |")
    for mutation, reason in EQUIVALENT:
        print(f"| equivalent | {mutation.file} | {mutation.wrong}: {reason} |")
    caught = list(found.values()).count("caught")
    rate = caught / max(len(found), 1)
    print(f"\n{caught} of {len(found)} caught: {rate:.0%}.")
    return int(rate < LEAST)


if __name__ == "__main__":
    raise SystemExit(main())
