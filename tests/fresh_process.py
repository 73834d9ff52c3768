"""A process of its own, which has compiled nothing yet, with the tests' devices or others."""

import os
import subprocess
import sys

# Python's own -c and -m cannot be told to begin with something.
QUICKLY = """
import runpy, sys
from tests import quick

quick.build()
how, what, *sys.argv[1:] = sys.argv[1:]
if how == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what)
"""


def run(*arguments: str, flags: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments; with flags of XLA's in place of those of conftest.py."""
    flags = os.environ["XLA_FLAGS"] if flags is None else flags
    return subprocess.run(
        [sys.executable, "-c", QUICKLY, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
