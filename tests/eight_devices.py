"""A process of its own with simulated devices: their number is fixed when JAX starts."""

import os
import subprocess
import sys


def run(*arguments: str, devices: int = 8) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
