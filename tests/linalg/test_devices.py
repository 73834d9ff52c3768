"""Eight devices with parts of a batch read what one device reads of the whole."""

import pytest

from tests import eight_devices

# Operators serve all others, so they alone are tried in every way.
WAYS = {
    "operators": ("checked", "unchecked", "pmap", "vmap"),
    "probes": ("checked", "pmap"),
    "training": ("checked", "pmap"),
    "transforms": ("checked", "unchecked"),
}


@pytest.mark.parametrize("part", WAYS)
def test_eight_devices_are_as_one(part):
    done = eight_devices.run("-m", "tests.linalg.devices_program", part, *WAYS[part])
    assert "as on one device" in done.stdout, done.stdout + done.stderr[-3000:]
