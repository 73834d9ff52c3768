"""Training on eight devices, however the model is laid out over them, is training on one."""

import pytest

from tests import many_devices_program


@pytest.mark.slow
def test_every_layout_takes_the_steps_of_one_device_and_decides_alike():
    # Two seeds with early transitions, which differ. More are a number of the command.
    many_devices_program.main((3, 6))
