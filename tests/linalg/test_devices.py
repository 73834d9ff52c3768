"""Eight devices with parts of a batch read what one device reads of the whole."""

import os
import subprocess
import sys

import pytest

# Operators serve all others, so they alone are tried in every way.
WAYS = {
    "operators": ("checked", "unchecked", "pmap", "vmap"),
    "probes": ("checked", "pmap"),
    "training": ("checked", "pmap"),
    "transforms": ("checked", "unchecked"),
}


@pytest.mark.parametrize("part", WAYS)
def test_eight_devices_are_as_one(part):
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.linalg.devices_program", part, *WAYS[part]]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert "as on one device" in done.stdout, done.stdout + done.stderr[-3000:]
