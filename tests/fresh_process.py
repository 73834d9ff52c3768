"""A process of its own with simulated devices: their number is fixed when JAX starts."""

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


def run(
    *arguments: str, devices: int = 8, flags: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments; with flags of XLA's in place of those for `devices`."""
    if flags is None:
        forced = f"--xla_force_host_platform_device_count={devices}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {forced}"
    return subprocess.run(
        [sys.executable, "-c", QUICKLY, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
