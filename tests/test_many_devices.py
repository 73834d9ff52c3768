"""Training on eight devices, however the model is laid out over them, is training on one."""

import pytest

from tests import eight_devices


@pytest.mark.slow
def test_every_layout_takes_the_steps_of_one_device_and_decides_alike():
    # Two seeds: the second has other transitions. More are a number of the command.
    done = eight_devices.run("-m", "tests.many_devices_program", "2")
    assert "as on one device" in done.stdout, done.stdout + done.stderr[-3000:]
